// The same API in Fastify, postgres.js and fast-jwt.
// Statements are prepared and pipelined by postgres.js, answers are serialised by functions compiled from the schemas.

import { createVerifier } from 'fast-jwt'
import Fastify from 'fastify'
import postgres from 'postgres'

const sql = postgres(process.env.DATABASE_URL, {
  max: 15,
  // bigint as a number: a version stays far below 2^53
  types: { bigint: { to: 20, from: [20], parse: Number, serialize: String } }
})

const verify = createVerifier({
  key: process.env.BETTER_AUTH_SECRET,
  algorithms: ['HS256'],
  requiredClaims: ['exp', 'sub'],
  clockTolerance: 10_000,
  cache: 10_000
})

const time = { type: 'string', format: 'date-time' }
const task = {
  type: 'object',
  properties: {
    id: { type: 'string' },
    user_id: { type: 'string' },
    title: { type: 'string' },
    description: { type: 'string', nullable: true },
    status: { type: 'string' },
    priority: { type: 'string' },
    is_completed: { type: 'boolean' },
    completed_at: { ...time, nullable: true },
    created_at: time,
    updated_at: time,
    deleted_at: { ...time, nullable: true },
    version: { type: 'integer' }
  }
}

const fields = {
  title: { type: 'string', minLength: 1, maxLength: 100 },
  description: { type: 'string', maxLength: 500, nullable: true },
  status: { enum: ['pending', 'in_progress', 'completed'] },
  priority: { enum: ['low', 'medium', 'high'] }
}
const update = { type: 'object', properties: fields, additionalProperties: false }
const create = { ...update, required: ['title'] }

const user = { user_id: { type: 'string', minLength: 1, maxLength: 255 } }
const ofUser = { type: 'object', properties: user }
const ofTask = { type: 'object', properties: { ...user, task_id: { type: 'string', format: 'uuid' } } }

const app = Fastify({
  logger: false,
  // Fastify's defaults would drop unknown fields and make strings of numbers
  ajv: { customOptions: { removeAdditional: false, coerceTypes: false } }
})

app.addHook('onRequest', (request, reply, done) => {
  const header = request.headers.authorization
  if (!header?.startsWith('Bearer ')) return refuse(reply, 'Missing authorization header')
  let claims
  try {
    claims = verify(header.slice(7))
  } catch {
    return refuse(reply, 'Invalid token')
  }
  if (claims.sub !== request.params.user_id) return refuse(reply, 'User ID mismatch')
  done()
})

function refuse (reply, detail) {
  reply.code(401).send({ detail })
}

// ajv has no keyword that trims, so this is done before it counts
function trimTitle (request, reply, done) {
  const body = request.body
  if (typeof body?.title === 'string') body.title = body.title.trim()
  done()
}

function found (row, reply) {
  return row ?? reply.code(404).send({ detail: 'Task not found' })
}

const tasks = '/api/:user_id/tasks'
const oneTask = `${tasks}/:task_id`

app.get(tasks, { schema: { params: ofUser, response: { 200: { type: 'array', items: task } } } },
  async (request) => await sql`
    select * from task
    where user_id = ${request.params.user_id} and deleted_at is null
    order by created_at desc, id`)

app.get(oneTask, { schema: { params: ofTask, response: { 200: task } } }, async (request, reply) => {
  const { user_id, task_id } = request.params
  const [row] = await sql`
    select * from task where user_id = ${user_id} and id = ${task_id} and deleted_at is null`
  return found(row, reply)
})

const creating = { schema: { params: ofUser, body: create, response: { 201: task } }, preValidation: trimTitle }
app.post(tasks, creating, async (request, reply) => {
  const { user_id } = request.params
  const { title, description = null, status = 'pending', priority = 'medium' } = request.body
  const [row] = await sql`
    with counter as (
      insert into account (user_id, version) values (${user_id}, 1)
      on conflict (user_id) do update set version = account.version + 1
      returning version
    )
    insert into task (id, user_id, title, description, status, priority, completed_at, version)
    select gen_random_uuid(), ${user_id}, ${title}, ${description}, ${status}::text, ${priority},
           case when ${status}::text = 'completed' then now() end, version
    from counter
    returning *`
  reply.code(201)
  return row
})

const updating = { schema: { params: ofTask, body: update, response: { 200: task } }, preValidation: trimTitle }
app.put(oneTask, updating, async (request, reply) => {
  const { user_id, task_id } = request.params
  const { title = null, description, status = null, priority = null } = request.body
  const [row] = await sql`
    with counter as (
      update account set version = version + 1
      where user_id = ${user_id}
        and exists (select from task where user_id = ${user_id} and id = ${task_id} and deleted_at is null)
      returning version
    )
    update task
    set title = coalesce(${title}, title),
        description = case when ${description !== undefined}::boolean then ${description ?? null} else description end,
        status = coalesce(${status}, status),
        priority = coalesce(${priority}, priority),
        completed_at = case when coalesce(${status}, status) = 'completed' then coalesce(completed_at, now()) end,
        updated_at = now(),
        version = counter.version
    from counter
    where user_id = ${user_id} and id = ${task_id} and deleted_at is null
    returning task.*`
  return found(row, reply)
})

app.patch(`${oneTask}/complete`, { schema: { params: ofTask, response: { 200: task } } }, async (request, reply) => {
  const { user_id, task_id } = request.params
  const [row] = await sql`
    with counter as (
      update account set version = version + 1
      where user_id = ${user_id}
        and exists (select from task where user_id = ${user_id} and id = ${task_id} and deleted_at is null)
      returning version
    )
    update task
    set status = case when status = 'completed' then 'pending' else 'completed' end,
        completed_at = case when status = 'completed' then null else now() end,
        updated_at = now(),
        version = counter.version
    from counter
    where user_id = ${user_id} and id = ${task_id} and deleted_at is null
    returning task.*`
  return found(row, reply)
})

await app.listen({ host: '127.0.0.1', port: Number(process.env.PORT) })
