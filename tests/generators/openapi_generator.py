"""Lists, creates and reads errors with what openapi-generator makes for Python."""

import json
import sys
from uuid import uuid4

from openapi_client import (
    ApiClient,
    ApiException,
    Configuration,
    TaskCreate,
    TaskPriority,
    TasksApi,
    TaskSort,
    TaskStatus,
)

_, _, user, token = sys.argv
tasks = TasksApi(ApiClient(Configuration(access_token=token)))  # the service's address is the document's
listed = tasks.list_tasks(user, status=[TaskStatus.PENDING, TaskStatus.IN_PROGRESS], sort=TaskSort.TITLE)
created = tasks.create_task(user, TaskCreate(title="Buy milk", priority=TaskPriority.HIGH))
contradiction = TaskCreate(title="Buy milk", status=TaskStatus.COMPLETED, is_completed=False)
try:
    tasks.create_task(user, contradiction)
except ApiException as error:
    invalid = error.data
try:
    tasks.find_task(user, uuid4())
except ApiException as error:
    missing = error
found = {
    "listed": [task.title for task in listed],
    "created": json.loads(created.to_json()),
    "invalid": [[[part.actual_instance for part in field.loc], field.type] for field in invalid.detail],
    "missing": [missing.status, missing.data.detail],
}
sys.stdout.write(json.dumps(found))
