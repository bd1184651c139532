"""The same API in FastAPI, SQLModel and asyncpg, written the way their documentation writes it."""

# Its packages live in a virtual environment of its own, not where the project is checked:
# mypy: disable-error-code="import-not-found,misc,untyped-decorator,call-arg,no-any-return"

import os
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID, uuid4

import jwt
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import StringConstraints
from sqlalchemy import Boolean, Computed, DateTime
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlmodel import Field, SQLModel, col, select
from sqlmodel.ext.asyncio.session import AsyncSession

SECRET = os.environ["BETTER_AUTH_SECRET"]

engine = create_async_engine(
    os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+asyncpg:", 1),
    pool_pre_ping=True,
    pool_size=5,
    max_overflow=10,
)
open_session = async_sessionmaker(engine, class_=AsyncSession, expire_on_commit=False)
app = FastAPI()

Title = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100)]
Description = Annotated[str, StringConstraints(max_length=500)]
Status = Literal["pending", "in_progress", "completed"]
Priority = Literal["low", "medium", "high"]


class Account(SQLModel, table=True):
    user_id: str = Field(primary_key=True)
    version: int = 0


class TaskPublic(SQLModel):
    id: UUID
    user_id: str
    title: str
    description: str | None
    status: str
    priority: str
    is_completed: bool
    completed_at: datetime | None
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None
    version: int


class Task(SQLModel, table=True):
    # what the database computes comes back with the INSERT or UPDATE itself, not with another SELECT
    __mapper_args__: ClassVar[dict[str, Any]] = {"eager_defaults": True}

    id: UUID = Field(default_factory=uuid4, primary_key=True)
    user_id: str = Field(primary_key=True)
    title: str
    description: str | None = None
    status: str = "pending"
    priority: str = "medium"
    is_completed: bool | None = Field(
        default=None, sa_type=Boolean, sa_column_args=[Computed("status = 'completed'", persisted=True)]
    )
    completed_at: datetime | None = Field(default=None, sa_type=DateTime(timezone=True))
    created_at: datetime = Field(sa_type=DateTime(timezone=True))
    updated_at: datetime = Field(sa_type=DateTime(timezone=True))
    deleted_at: datetime | None = Field(default=None, sa_type=DateTime(timezone=True))
    version: int


class TaskCreate(SQLModel):
    model_config = {"extra": "forbid"}

    title: Title
    description: Description | None = None
    status: Status = "pending"
    priority: Priority = "medium"


class TaskUpdate(SQLModel):
    model_config = {"extra": "forbid"}

    title: Title = ""
    description: Description | None = None
    status: Status = "pending"
    priority: Priority = "medium"


async def current_user(user_id: str, bearer: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> str:
    """Returns the path's user, once the token says the same."""
    try:
        claims = jwt.decode(
            bearer.credentials, SECRET, algorithms=["HS256"], leeway=10, options={"require": ["exp", "sub"]}
        )
    except jwt.PyJWTError:
        raise HTTPException(401, "Invalid token") from None
    if claims["sub"] != user_id:
        raise HTTPException(401, "User ID mismatch")
    return user_id


async def session_of_request() -> AsyncIterator[AsyncSession]:
    """Yields the session of one request."""
    async with open_session() as session:
        yield session


User = Annotated[str, Depends(current_user)]
Session = Annotated[AsyncSession, Depends(session_of_request)]


@app.get("/api/{user_id}/tasks", response_model=list[TaskPublic])
async def list_tasks(user: User, session: Session) -> Sequence[Task]:
    """Returns the user's tasks, newest first."""
    found = await session.exec(
        select(Task)
        .where(Task.user_id == user, col(Task.deleted_at).is_(None))
        .order_by(col(Task.created_at).desc(), col(Task.id))
    )
    return found.all()


@app.get("/api/{user_id}/tasks/{task_id}", response_model=TaskPublic)
async def read_task(user: User, task_id: UUID, session: Session) -> Task:
    """Returns one task."""
    return await find_task(session, user, task_id)


@app.post("/api/{user_id}/tasks", response_model=TaskPublic, status_code=201)
async def create_task(user: User, body: TaskCreate, session: Session) -> Task:
    """Returns the new task."""
    version = await next_version(session, user)
    now = datetime.now(UTC)
    task = Task(**body.model_dump(), user_id=user, created_at=now, updated_at=now, version=version)
    if task.status == "completed":
        task.completed_at = now
    session.add(task)
    await session.commit()
    return task


@app.put("/api/{user_id}/tasks/{task_id}", response_model=TaskPublic)
async def update_task(user: User, task_id: UUID, body: TaskUpdate, session: Session) -> Task:
    """Returns the task after the change of the fields that were sent."""
    version = await next_version(session, user)
    task = await find_task(session, user, task_id)
    task.sqlmodel_update(body.model_dump(exclude_unset=True))
    await save(session, task, version)
    return task


@app.patch("/api/{user_id}/tasks/{task_id}/complete", response_model=TaskPublic)
async def complete_task(user: User, task_id: UUID, session: Session) -> Task:
    """Returns the task, completed if it was not, else pending."""
    version = await next_version(session, user)
    task = await find_task(session, user, task_id)
    task.status = "pending" if task.status == "completed" else "completed"
    await save(session, task, version)
    return task


async def find_task(session: AsyncSession, user: str, task_id: UUID) -> Task:
    """Returns the live task; raises a 404."""
    found = await session.exec(
        select(Task).where(Task.user_id == user, Task.id == task_id, col(Task.deleted_at).is_(None))
    )
    task: Task | None = found.one_or_none()
    if task is None:
        raise HTTPException(404, "Task not found")
    return task


async def next_version(session: AsyncSession, user: str) -> int:
    """Returns the user's next number; the account stays locked until the session commits."""
    account: Account | None = await session.get(Account, user, with_for_update=True)
    if account is None:
        account = Account(user_id=user)
        session.add(account)
    account.version += 1
    return account.version


async def save(session: AsyncSession, task: Task, version: int) -> None:
    """Commits the changed task under its new version."""
    now = datetime.now(UTC)
    task.completed_at = (task.completed_at or now) if task.status == "completed" else None
    task.updated_at = now
    task.version = version
    await session.commit()
