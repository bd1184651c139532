// Imports the document as Postman does, without optional parameters, and sends the list's request.
const { readFileSync } = require("node:fs");
const { convert } = require("openapi-to-postmanv2");

const [, , document, user, token] = process.argv;
const data = readFileSync(document, "utf8");

convert({ type: "string", data }, { folderStrategy: "Tags", enableOptionalParameters: false }, async (error, result) => {
  if (error || !result.result) throw new Error(error ?? result.reason);
  const collection = result.output[0].data;
  const values = { bearerToken: token, ...Object.fromEntries(collection.variable.map(({ key, value }) => [key, value])) };
  const filled = (text) => text.replace(/{{(\w+)}}/g, (_, name) => values[name]);
  const [{ request }] = collection.item[0].item;
  const path = request.url.path.map((part) => (part === ":user_id" ? user : part)).join("/");
  const query = request.url.query.filter(({ disabled }) => !disabled).map(({ key }) => key);
  const [{ value }] = request.auth.bearer;
  const response = await fetch(`${filled(request.url.host.join("."))}/${path}`, {
    method: request.method,
    headers: { Authorization: `Bearer ${filled(value)}` },
  });
  const tasks = await response.json();
  console.log(JSON.stringify({ status: response.status, query, titles: tasks.map(({ title }) => title).sort() }));
});
