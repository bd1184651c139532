// Every operation of the service, called with the types that openapi-typescript makes of its document.
import createClient from "openapi-fetch";
import type { components, operations, paths } from "./made";

declare const process: { argv: [string, string, string, string, string]; exitCode?: number };

const [, , baseUrl, user_id, token] = process.argv;
const client = createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${token}` } });

const called = new Set<string>();
client.use({
  onRequest({ request, schemaPath }) {
    called.add(`${request.method} ${schemaPath}`);
  },
});

function expect(holds: boolean, what: string): asserts holds {
  if (!holds) throw new Error(what);
}

type Task = components["schemas"]["Task"];

async function created(title: string): Promise<Task> {
  const { data, error } = await client.POST("/api/{user_id}/tasks", { params: { path: { user_id } }, body: { title } });
  expect(data !== undefined, `not created: ${JSON.stringify(error)}`);
  return data;
}

function path(task: Task) {
  return { params: { path: { user_id, task_id: task.id } } };
}

// An operation that the document has and this table has not is an error of the compiler.
const uses: Record<keyof operations, () => Promise<void>> = {
  async create_task() {
    const task = await created("Buy milk");
    expect(task.status === "pending" && task.version >= 1, "create");
    const { error, response } = await client.POST("/api/{user_id}/tasks", {
      params: { path: { user_id } },
      body: { title: " " },
    });
    expect(response.status === 422 && error !== undefined, "a blank title");
    const detail: components["schemas"]["ValidationProblem"]["detail"] | string = error.detail;
    expect(typeof detail !== "string" && detail[0]?.loc.join(".") === "body.title", "where it is wrong");
  },
  async list_tasks() {
    const task = await created("Buy bread");
    const done = await client.POST("/api/{user_id}/tasks", {
      params: { path: { user_id } },
      body: { title: "Bought", status: "completed" },
    });
    const { data } = await client.GET("/api/{user_id}/tasks", {
      params: { path: { user_id }, query: { status: ["pending", "in_progress"] } },
    });
    expect(data?.[0]?.id === task.id && data.every(({ id }) => id !== done.data?.id), "list");
  },
  async find_task() {
    const task = await created("Buy eggs");
    const { data } = await client.GET("/api/{user_id}/tasks/{task_id}", path(task));
    expect(data?.title === "Buy eggs", "find");
  },
  async update_task() {
    const task = await created("Buy tea");
    const { data } = await client.PATCH("/api/{user_id}/tasks/{task_id}", {
      ...path(task),
      body: { status: "in_progress", description: null },
    });
    expect(data?.status === "in_progress" && data.version > task.version, "update");
  },
  async put_task() {
    const task = await created("Buy salt");
    const { data } = await client.PUT("/api/{user_id}/tasks/{task_id}", { ...path(task), body: { priority: "high" } });
    expect(data?.priority === "high" && data.title === "Buy salt", "put");
  },
  async complete_task() {
    const task = await created("Buy rice");
    const toggled = await client.PATCH("/api/{user_id}/tasks/{task_id}/complete", path(task));
    expect(toggled.data?.is_completed === true, "complete");
    const set = await client.PATCH("/api/{user_id}/tasks/{task_id}/complete", {
      ...path(task),
      body: { is_completed: false },
    });
    expect(set.data?.completed_at === null, "reopen");
  },
  async delete_task() {
    const task = await created("Buy soap");
    const { response } = await client.DELETE("/api/{user_id}/tasks/{task_id}", path(task));
    expect(response.status === 204, "delete");
    const { error } = await client.GET("/api/{user_id}/tasks/{task_id}", path(task));
    expect(error?.detail === "Task not found", "deleted");
  },
  async restore_task() {
    const task = await created("Buy rope");
    await client.DELETE("/api/{user_id}/tasks/{task_id}", path(task));
    const { data } = await client.POST("/api/{user_id}/tasks/{task_id}/restore", path(task));
    expect(data?.deleted_at === null && data.id === task.id, "restore");
  },
  async run_batch() {
    const task = await created("Buy string");
    const { data } = await client.POST("/api/{user_id}/batch", {
      params: { path: { user_id } },
      body: { operations: [{ op: "complete", id: task.id, if_version: task.version, task: { is_completed: true } }] },
    });
    expect(data?.committed === true && data.results[0]?.task?.status === "completed", "batch");
    expect(data.version === data.results[0].task.version && data.version > task.version, "a batch's number");
  },
  async list_changes() {
    const task = await created("Buy glue");
    const { data } = await client.GET("/api/{user_id}/changes", {
      params: { path: { user_id }, query: { since: task.version - 1, limit: 10, wait: 0 } },
    });
    expect(data?.version === task.version && data.tasks[0]?.id === task.id && !data.has_more, "changes");
    const ahead = await client.GET("/api/{user_id}/changes", {
      params: { path: { user_id }, query: { since: task.version + 1 } },
    });
    expect(ahead.response.status === 410 && ahead.error?.detail === "Start again from since=0", "start again");
  },
  async stream_changes() {
    const task = await created("Buy tape");
    const { data } = await client.GET("/api/{user_id}/events", {
      params: { path: { user_id }, header: { "Last-Event-ID": String(task.version - 1) } },
      parseAs: "stream",
    });
    let text = "";
    const reader = data!.pipeThrough(new TextDecoderStream()).getReader();
    while (!text.includes("\n\nevent: changes\n")) text += (await reader.read()).value;
    await reader.cancel();
    expect(text.includes(`id: ${task.version}\n`), "the stream's first event");
  },
  async list_history() {
    const task = await created("Buy wire");
    await client.PATCH("/api/{user_id}/tasks/{task_id}", { ...path(task), body: { priority: "low" } });
    const { data } = await client.GET("/api/{user_id}/history", {
      params: { path: { user_id }, query: { task_id: task.id, limit: 10 } },
    });
    expect(data?.[0]?.operation === "update" && data[0].before?.priority === "medium", "what an update did");
    expect(data[1]?.before === null && data[1].after.title === "Buy wire", "what a create did");
  },
  async undo_change() {
    const task = await created("Buy nails");
    const changed = await client.PATCH("/api/{user_id}/tasks/{task_id}", { ...path(task), body: { title: "Buy screws" } });
    const undo = { params: { path: { user_id } }, body: { version: changed.data!.version } };
    const { data } = await client.POST("/api/{user_id}/undo", undo);
    expect(data?.tasks[0]?.title === "Buy nails" && data.version === task.version + 2, "undo");
    await client.PATCH("/api/{user_id}/tasks/{task_id}", { ...path(task), body: { title: "Buy bolts" } });
    const { error, response } = await client.POST("/api/{user_id}/undo", undo);
    expect(response.status === 409 && error !== undefined && "conflicts" in error, "a conflict");
    expect(error.conflicts[0]?.task_id === task.id && error.conflicts[0].fields[0] === "title", "which fields");
  },
  async list_tags() {
    await client.POST("/api/{user_id}/tasks", {
      params: { path: { user_id } },
      body: { title: "Buy paint", tags: ["house", "Shopping"] },
    });
    const { data } = await client.GET("/api/{user_id}/tags", { params: { path: { user_id } } });
    expect(data?.some(({ tag, tasks, open }) => tag === "house" && tasks === 1 && open === 1) === true, "tags");
    const found = await client.GET("/api/{user_id}/tasks", {
      params: { path: { user_id }, query: { tags_all: ["HOUSE", "shopping"], due: "none", sort: "due" } },
    });
    expect(found.data?.[0]?.title === "Buy paint" && found.data.length === 1, "by tags");
  },
  async rename_tag() {
    await client.POST("/api/{user_id}/tasks", {
      params: { path: { user_id } },
      body: { title: "Buy seeds", tags: ["balcony"] },
    });
    const rename = (from: string, to: string | null) =>
      client.POST("/api/{user_id}/tags/rename", { params: { path: { user_id } }, body: { from, to } });
    const { data } = await rename("balcony", "garden");
    expect(data?.tasks === 1 && data.version !== null, "renamed");
    const nothing = await rename("balcony", null);
    expect(nothing.data?.tasks === 0 && nothing.data.version === null, "nothing to rename");
  },
  async healthz() {
    expect((await client.GET("/healthz")).data?.status === "ok", "healthz");
  },
  async readyz() {
    expect((await client.GET("/readyz")).data?.status === "ok", "readyz");
  },
};

async function main() {
  for (const use of Object.values(uses)) await use();
  console.log(JSON.stringify([...called].sort()));
}

main();
