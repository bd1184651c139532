import { createTask, findTask, listTasks } from "./made";

declare const process: { argv: [string, string, string, string, string] };
const [, , , user_id, token] = process.argv;
const options = { headers: { Authorization: `Bearer ${token}` } }; // the service's address is the document's

async function main() {
  const listed = await listTasks(user_id, { status: ["pending", "in_progress"], sort: "title" }, options);
  const created = await createTask(user_id, { title: "Buy milk", priority: "high" }, {}, options);
  const invalid = await createTask(user_id, { title: "Buy milk", status: "completed", is_completed: false }, {}, options);
  const missing = await findTask(user_id, crypto.randomUUID(), options);
  console.log(
    JSON.stringify({
      listed: listed.status === 200 && listed.data.map((task) => task.title),
      created: created.status === 201 && created.data,
      invalid: invalid.status === 422 && invalid.data.detail.map((field) => [field.loc, field.type]),
      missing: [missing.status, missing.status === 404 && missing.data.detail],
    }),
  );
}

main();
