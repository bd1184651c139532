import { createTask, findTask, listTasks, streamChanges, type Task, type ValidationProblem } from "./made";
import { client } from "./made/client.gen";

declare const process: { argv: [string, string, string, string, string] };
const [, , , user_id, token] = process.argv;
client.setConfig({ auth: token }); // the service's address is the document's

async function main() {
  const listed = await listTasks({
    path: { user_id },
    query: { status: ["pending", "in_progress"], sort: "title" },
  });
  const tasks: Task[] = listed.data ?? [];
  const created = await createTask({ path: { user_id }, body: { title: "Buy milk", priority: "high" } });
  const invalid = await createTask({
    path: { user_id },
    body: { title: "Buy milk", status: "completed", is_completed: false },
  });
  const missing = await findTask({ path: { user_id, task_id: crypto.randomUUID() } });
  const stop = new AbortController();
  const { stream } = await streamChanges({
    path: { user_id },
    headers: { "Last-Event-ID": String(created.data!.version - 1) },
    signal: stop.signal,
  });
  const streamed: string[] = [];
  for await (const page of stream) {
    streamed.push(...page.tasks.map((task) => task.title));
    stop.abort();
    break;
  }
  const problem = invalid.error as ValidationProblem;
  console.log(
    JSON.stringify({
      listed: tasks.map((task) => task.title),
      created: created.data,
      invalid: problem.detail.map((field) => [field.loc, field.type]),
      streamed,
      missing: [missing.response?.status, missing.error?.detail],
    }),
  );
}

main();
