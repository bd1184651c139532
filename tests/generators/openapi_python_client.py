"""Lists, creates and reads errors with what openapi-python-client makes."""

import json
import sys
from uuid import uuid4

from task_service_client import AuthenticatedClient
from task_service_client.api.tasks import create_task, find_task, list_tasks
from task_service_client.models import (
    Problem,
    Task,
    TaskCreate,
    TaskPriority,
    TaskSort,
    TaskStatus,
    ValidationProblem,
)

_, address, user, token = sys.argv
client = AuthenticatedClient(base_url=address, token=token)
listed = list_tasks.sync(user, client=client, status=[TaskStatus.PENDING, TaskStatus.IN_PROGRESS], sort=TaskSort.TITLE)
created = create_task.sync(user, client=client, body=TaskCreate(title="Buy milk", priority=TaskPriority.HIGH))
contradiction = TaskCreate(title="Buy milk", status=TaskStatus.COMPLETED, is_completed=False)
invalid = create_task.sync(user, client=client, body=contradiction)
missing = find_task.sync_detailed(user, uuid4(), client=client)
assert isinstance(created, Task)
assert isinstance(invalid, ValidationProblem)
assert isinstance(missing.parsed, Problem)
found = {
    "listed": [task.title for task in listed],
    "created": created.to_dict(),
    "invalid": [[field.loc, field.type_] for field in invalid.detail],
    "missing": [missing.status_code, missing.parsed.detail],
}
sys.stdout.write(json.dumps(found))
