import { Api, TaskPriority, TaskSort, TaskStatus, type Problem, type Task, type ValidationProblem } from "./made/Api";

declare const process: { argv: [string, string, string, string, string] };
const [, , , user_id, token] = process.argv;
const { api } = new Api({ baseApiParams: { headers: { Authorization: `Bearer ${token}` } } });

async function refused<Body>(call: Promise<unknown>): Promise<{ status: number; error: Body }> {
  return call.then(() => Promise.reject(new Error("not refused")), (response) => response);
}

async function main() {
  const listed = await api.listTasks(user_id, {
    status: [TaskStatus.Pending, TaskStatus.InProgress],
    sort: TaskSort.TITLE,
  });
  const tasks: Task[] = listed.data;
  const created = await api.createTask(user_id, { title: "Buy milk", priority: TaskPriority.High });
  const invalid = await refused<ValidationProblem>(
    api.createTask(user_id, { title: "Buy milk", status: TaskStatus.Completed, is_completed: false }),
  );
  const missing = await refused<Problem>(api.findTask(user_id, crypto.randomUUID()));
  console.log(
    JSON.stringify({
      listed: tasks.map((task) => task.title),
      created: created.data,
      invalid: invalid.error.detail.map((field) => [field.loc, field.type]),
      missing: [missing.status, missing.error.detail],
    }),
  );
}

main();
