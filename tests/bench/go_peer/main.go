// The same API in Go: net/http, pgx and encoding/json.
// pgx prepares each statement once per connection and speaks PostgreSQL's binary protocol.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/golang-jwt/jwt" // Debian's package; version 4, under the path without it
	"github.com/google/uuid"
	"github.com/jackc/pgx/v4"
	"github.com/jackc/pgx/v4/pgxpool"
)

type task struct {
	ID          uuid.UUID  `json:"id"`
	UserID      string     `json:"user_id"`
	Title       string     `json:"title"`
	Description *string    `json:"description"`
	Status      string     `json:"status"`
	Priority    string     `json:"priority"`
	IsCompleted bool       `json:"is_completed"`
	CompletedAt *time.Time `json:"completed_at"`
	CreatedAt   time.Time  `json:"created_at"`
	UpdatedAt   time.Time  `json:"updated_at"`
	DeletedAt   *time.Time `json:"deleted_at"`
	Version     int64      `json:"version"`
}

const columns = `id, user_id, title, description, status, priority, is_completed,
	completed_at, created_at, updated_at, deleted_at, version`

const (
	listSQL = `select ` + columns + ` from task
		where user_id = $1 and deleted_at is null order by created_at desc, id`

	findSQL = `select ` + columns + ` from task where user_id = $1 and id = $2 and deleted_at is null`

	insertSQL = `
		with counter as (
			insert into account (user_id, version) values ($1, 1)
			on conflict (user_id) do update set version = account.version + 1
			returning version as number
		)
		insert into task (id, user_id, title, description, status, priority, completed_at, version)
		select gen_random_uuid(), $1, $2, $3, $4, $5, case when $4 = 'completed' then now() end, number
		from counter
		returning ` + columns

	countSQL = `
		with counter as (
			update account set version = version + 1
			where user_id = $1
				and exists (select from task where user_id = $1 and id = $2 and deleted_at is null)
			returning version as number
		)`

	updateSQL = countSQL + `
		update task
		set title = coalesce($3, title),
			description = case when $4 then $5 else description end,
			status = coalesce($6, status),
			priority = coalesce($7, priority),
			completed_at = case when coalesce($6, status) = 'completed' then coalesce(completed_at, now()) end,
			updated_at = now(),
			version = number
		from counter
		where user_id = $1 and id = $2 and deleted_at is null
		returning ` + columns

	toggleSQL = countSQL + `
		update task
		set status = case when status = 'completed' then 'pending' else 'completed' end,
			completed_at = case when status = 'completed' then null else now() end,
			updated_at = now(),
			version = number
		from counter
		where user_id = $1 and id = $2 and deleted_at is null
		returning ` + columns
)

// optionalText tells an absent field from a null.
type optionalText struct {
	sent bool
	text *string
}

func (o *optionalText) UnmarshalJSON(data []byte) error {
	o.sent = true
	return json.Unmarshal(data, &o.text)
}

type taskBody struct {
	Title       *string      `json:"title"`
	Description optionalText `json:"description"`
	Status      *string      `json:"status"`
	Priority    *string      `json:"priority"`
}

func (b *taskBody) check() error {
	if b.Title != nil {
		*b.Title = strings.TrimSpace(*b.Title)
		if length := utf8.RuneCountInString(*b.Title); length < 1 || length > 100 {
			return errors.New("title: 1 to 100 characters")
		}
	}
	if b.Description.text != nil && utf8.RuneCountInString(*b.Description.text) > 500 {
		return errors.New("description: at most 500 characters")
	}
	if b.Status != nil {
		switch *b.Status {
		case "pending", "in_progress", "completed":
		default:
			return errors.New("status: pending, in_progress or completed")
		}
	}
	if b.Priority != nil {
		switch *b.Priority {
		case "low", "medium", "high":
		default:
			return errors.New("priority: low, medium or high")
		}
	}
	return nil
}

type server struct {
	db     *pgxpool.Pool
	secret []byte
	parser *jwt.Parser
}

// ServeHTTP routes by hand: five routes need no library.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(r.URL.Path, "/") // "", "api", user, "tasks", task, "complete"
	if len(parts) < 4 || len(parts) > 6 || parts[1] != "api" || parts[3] != "tasks" {
		refuse(w, http.StatusNotFound, "Not Found")
		return
	}
	user := parts[2]
	if detail := s.authenticate(r, user); detail != "" {
		refuse(w, http.StatusUnauthorized, detail)
		return
	}
	if len(parts) == 4 {
		switch r.Method {
		case http.MethodGet:
			s.list(w, r, user)
		case http.MethodPost:
			s.create(w, r, user)
		default:
			refuse(w, http.StatusMethodNotAllowed, "Method Not Allowed")
		}
		return
	}
	id, err := uuid.Parse(parts[4])
	switch {
	case err != nil:
		refuse(w, http.StatusUnprocessableEntity, "task_id: a UUID")
	case len(parts) == 5 && r.Method == http.MethodGet:
		s.answer(w, http.StatusOK, s.db.QueryRow(r.Context(), findSQL, user, id))
	case len(parts) == 5 && r.Method == http.MethodPut:
		s.update(w, r, user, id)
	case len(parts) == 6 && parts[5] == "complete" && r.Method == http.MethodPatch:
		s.answer(w, http.StatusOK, s.db.QueryRow(r.Context(), toggleSQL, user, id))
	default:
		refuse(w, http.StatusNotFound, "Not Found")
	}
}

// authenticate returns what is wrong with the token, or "".
func (s *server) authenticate(r *http.Request, user string) string {
	header := r.Header.Get("Authorization")
	if !strings.HasPrefix(header, "Bearer ") {
		return "Missing authorization header"
	}
	var claims jwt.RegisteredClaims
	_, err := s.parser.ParseWithClaims(header[len("Bearer "):], &claims, func(*jwt.Token) (interface{}, error) {
		return s.secret, nil
	})
	if err != nil || claims.ExpiresAt == nil {
		return "Invalid token"
	}
	if claims.Subject != user {
		return "User ID mismatch"
	}
	return ""
}

func (s *server) list(w http.ResponseWriter, r *http.Request, user string) {
	rows, err := s.db.Query(r.Context(), listSQL, user)
	if err != nil {
		fail(w, err)
		return
	}
	defer rows.Close()
	tasks := make([]task, 0, 64)
	for rows.Next() {
		var t task
		if err := scan(rows, &t); err != nil {
			fail(w, err)
			return
		}
		tasks = append(tasks, t)
	}
	if err := rows.Err(); err != nil {
		fail(w, err)
		return
	}
	writeJSON(w, http.StatusOK, tasks)
}

func (s *server) create(w http.ResponseWriter, r *http.Request, user string) {
	body, err := readBody(w, r)
	if err == nil && body.Title == nil {
		err = errors.New("title: required")
	}
	if err != nil {
		refuse(w, http.StatusUnprocessableEntity, err.Error())
		return
	}
	status, priority := "pending", "medium"
	if body.Status != nil {
		status = *body.Status
	}
	if body.Priority != nil {
		priority = *body.Priority
	}
	s.answer(w, http.StatusCreated,
		s.db.QueryRow(r.Context(), insertSQL, user, *body.Title, body.Description.text, status, priority))
}

func (s *server) update(w http.ResponseWriter, r *http.Request, user string, id uuid.UUID) {
	body, err := readBody(w, r)
	if err != nil {
		refuse(w, http.StatusUnprocessableEntity, err.Error())
		return
	}
	s.answer(w, http.StatusOK, s.db.QueryRow(r.Context(), updateSQL,
		user, id, body.Title, body.Description.sent, body.Description.text, body.Status, body.Priority))
}

// answer writes the row's task, or a 404 when there is none.
func (s *server) answer(w http.ResponseWriter, status int, row pgx.Row) {
	var t task
	switch err := scan(row, &t); {
	case errors.Is(err, pgx.ErrNoRows):
		refuse(w, http.StatusNotFound, "Task not found")
	case err != nil:
		fail(w, err)
	default:
		writeJSON(w, status, &t)
	}
}

func scan(row pgx.Row, t *task) error {
	return row.Scan(&t.ID, &t.UserID, &t.Title, &t.Description, &t.Status, &t.Priority, &t.IsCompleted,
		&t.CompletedAt, &t.CreatedAt, &t.UpdatedAt, &t.DeletedAt, &t.Version)
}

func readBody(w http.ResponseWriter, r *http.Request) (*taskBody, error) {
	var body taskBody
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&body); err != nil {
		return nil, err
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, errors.New("one JSON object")
	}
	return &body, body.check()
}

// writeJSON sends the length as well: else a list would go out in chunks.
func writeJSON(w http.ResponseWriter, status int, value interface{}) {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(buffer.Len()))
	w.WriteHeader(status)
	_, _ = w.Write(buffer.Bytes())
}

func refuse(w http.ResponseWriter, status int, detail string) {
	writeJSON(w, status, map[string]string{"detail": detail})
}

func fail(w http.ResponseWriter, err error) {
	log.Print(err)
	refuse(w, http.StatusInternalServerError, "Internal server error")
}

func main() {
	time.Local = time.UTC // pgx gives timestamps in the local zone
	config, err := pgxpool.ParseConfig(os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	config.MinConns = 5
	config.MaxConns = 15
	db, err := pgxpool.ConnectConfig(context.Background(), config)
	if err != nil {
		log.Fatal(err)
	}
	handler := &server{
		db:     db,
		secret: []byte(os.Getenv("BETTER_AUTH_SECRET")),
		parser: jwt.NewParser(jwt.WithValidMethods([]string{"HS256"})),
	}
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), handler))
}
