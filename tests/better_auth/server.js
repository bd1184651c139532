// A Better Auth server as its documentation has it: email and password, the JWT plugin, PostgreSQL.
import { createServer } from "node:http";
import { betterAuth } from "better-auth";
import { getMigrations } from "better-auth/db/migration";
import { toNodeHandler, fromNodeHeaders } from "better-auth/node";
import { jwt } from "better-auth/plugins";
import { SignJWT } from "jose";
import pg from "pg";

const { PORT, SHARED_SECRET, ALGORITHM, EXPIRATION } = process.env;

const auth = betterAuth({
  baseURL: `http://127.0.0.1:${PORT}`,
  secret: "the Better Auth server's own secret, which is nobody else's",
  database: new pg.Pool(),
  emailAndPassword: { enabled: true },
  plugins: [
    jwt({
      ...(ALGORITHM && { jwks: { keyPairConfig: { alg: ALGORITHM } } }),
      ...(EXPIRATION && { jwt: { expirationTime: EXPIRATION } }),
    }),
  ],
});

const { runMigrations } = await getMigrations(auth.options);
await runMigrations();

// What a route of a Next.js frontend does that shares a secret with the service instead.
async function signWithSecret(request, response) {
  const session = await auth.api.getSession({ headers: fromNodeHeaders(request.headers) });
  if (!session) return response.writeHead(401).end();
  const token = await new SignJWT()
    .setProtectedHeader({ alg: "HS256" })
    .setSubject(session.user.id)
    .setIssuedAt()
    .setExpirationTime("15m")
    .sign(new TextEncoder().encode(SHARED_SECRET));
  response.setHeader("Content-Type", "application/json").end(JSON.stringify({ token }));
}

const handle = toNodeHandler(auth);
createServer((request, response) =>
  request.url === "/api/token" ? signWithSecret(request, response) : handle(request, response),
).listen(Number(PORT), "127.0.0.1", () => console.log("listening"));
