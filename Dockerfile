# The service, for a database elsewhere. docs/operations.md says how to run it; compose.yaml has a PostgreSQL beside it.

ARG BASE=python:3.13-slim

FROM $BASE AS build
WORKDIR /app
COPY requirements.txt .
RUN python3 -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --require-hashes -r requirements.txt \
    && /venv/bin/pip uninstall --yes pip
COPY pyproject.toml .
COPY migrations migrations
COPY sql sql
COPY service service
# The service cannot write its bytecode later; and the files may come from a checkout that only its owner can read.
RUN /venv/bin/python -m compileall -q service && chmod -R a+rX .

FROM $BASE
COPY --from=build /venv /venv
COPY --from=build /app /app
WORKDIR /app
ENV PATH=/venv/bin:$PATH HOST=* PORT=8000
EXPOSE 8000
# A number: Kubernetes' runAsNonRoot does not look up names.
USER 10001:10001
# /healthz, since what is unhealthy is restarted or replaced: an outage of the database is no reason for that.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "-Ic", "import http.client, os; \
c = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT'] or 8000), timeout=4); \
c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["python", "-m", "service"]
CMD ["serve"]
