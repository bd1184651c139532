"""The environment, read once into a frozen object; everything that is wrong with it is named in one message."""

import re
from typing import Annotated, Literal, Self
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service import embedded

# An HS256 key shorter than the hash's output (32 bytes) weakens the signature: RFC 7518, section 3.2.
SECRET_LENGTH = 32

ORIGIN = re.compile(r"https?://[^/?#@\s*]+", re.ASCII | re.IGNORECASE)


class SettingsError(Exception):
    """What is wrong with the environment: one line a setting, for the person who starts the service."""


def normalized_url(secret: SecretStr) -> SecretStr:
    """Brings the forms that are about (Heroku's, SQLAlchemy's, Neon's) to the one that libpq, asyncpg and yoyo share.

    Returns postgresql://…, with SQLAlchemy's `ssl=` as `sslmode=`; raises ValueError, which never quotes the URL.
    """
    try:
        url = urlsplit(secret.get_secret_value())
        url.port  # noqa: B018  (the property is what checks the port)
    except ValueError:
        raise ValueError("is no URL") from None
    if url.scheme not in ("postgres", "postgresql", "postgresql+asyncpg"):
        raise ValueError("must begin with postgresql://, postgres:// or postgresql+asyncpg://")
    query = dict(parse_qsl(url.query, keep_blank_values=True))
    if "ssl" in query:
        ssl = query.pop("ssl").lower()
        query.setdefault(
            "sslmode", {"true": "require", "1": "require", "false": "disable", "0": "disable"}.get(ssl, ssl)
        )
    return SecretStr(urlunsplit(("postgresql", url.netloc, url.path, urlencode(query, quote_via=quote), "")))


def origins(value: str) -> tuple[str, ...]:
    """Splits the comma-separated origins. Raises ValueError that names the one that is no origin."""
    found = tuple(part.strip().rstrip("/").lower() for part in value.split(",") if part.strip())
    for origin in found:
        if not ORIGIN.fullmatch(origin):
            raise ValueError(f"{origin!r} is no origin; write scheme://host[:port], several with commas between them")
    return found


class Settings(BaseSettings):
    """The service's settings, each under its upper-case name in the environment or in `.env`."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=False,
    )

    database_url: Annotated[SecretStr, AfterValidator(normalized_url)] | None = None
    better_auth_secret: SecretStr = SecretStr("")
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    # NoDecode: it is no JSON, as pydantic-settings expects of a tuple
    frontend_url: Annotated[tuple[str, ...], NoDecode, BeforeValidator(origins)] = ("http://localhost:3000",)
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    web_concurrency: int = Field(default=1, ge=1)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    db_pool_min: int = Field(default=5, ge=1)
    db_pool_max: int = Field(default=15, ge=1)
    db_statement_cache: int = Field(default=100, ge=0)

    @model_validator(mode="after")
    def fits_together(self) -> Self:
        """Checks what no field can see alone."""
        if self.db_pool_min > self.db_pool_max:
            raise ValueError(f"DB_POOL_MIN ({self.db_pool_min}) is above DB_POOL_MAX ({self.db_pool_max})")
        length = len(self.better_auth_secret.get_secret_value())
        if length == 0 and self.database_url is not None:
            raise ValueError("BETTER_AUTH_SECRET is required with DATABASE_URL: set it to the frontend's secret")
        if 0 < length < SECRET_LENGTH:
            raise ValueError(
                f"BETTER_AUTH_SECRET has {length} characters and needs at least {SECRET_LENGTH}; "
                "`openssl rand -base64 32` makes one"
            )
        return self

    @property
    def secret(self) -> str:
        """The secret that signs HS256 tokens; for the embedded database one is made once and kept.

        Raises embedded.Unusable when the data folder cannot hold it.
        """
        return self.better_auth_secret.get_secret_value() or embedded.kept_secret()

    def url(self) -> str:
        """The database's URL, password included. Raises embedded.Unusable when the embedded one is not running."""
        return self.database_url.get_secret_value() if self.database_url else embedded.url()


def load() -> Settings:
    """Reads the environment and `.env`. Raises SettingsError, which names everything that is wrong at once."""
    try:
        return Settings()
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False, include_input=False):
            name = ".".join(str(part) for part in problem["loc"][:1]).upper()
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{name}: {message}" if name else message)
        raise SettingsError("\n".join(lines)) from None
