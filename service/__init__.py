"""A task-management REST service: hand-written SQL on PostgreSQL behind Starlette."""
