"""The settings, read once from the environment into a frozen object; one message names all errors."""

import os
import re
from ipaddress import IPv6Address, ip_network
from typing import Annotated, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

import idna
from dotenv import dotenv_values
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    InstanceOf,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.db import embedded
from service.db.address import Address, forget_environment, parse_address

# An HS256 key shorter than the hash's output (32 bytes) weakens the signature: RFC 7518, section 3.2.
SECRET_LENGTH = 32

# An origin as browsers define it, with any scheme: capacitor://localhost, chrome-extension://…
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\\\s*%]+/?", re.ASCII | re.IGNORECASE)
USUAL_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443, "ftp": 21}  # the URL standard's
HEADER_NAME = re.compile(r"[!#$%&'+.^_`|~0-9A-Za-z-]+")  # RFC 9110's, without *, which is no wildcard here
PREFIX = re.compile(r"/|(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)+/?")

RATE = re.compile(r"([1-9][0-9]{0,8})/(second|minute|hour|day)")
UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}

S = TypeVar("S", bound="DatabaseSettings")


class Rate(NamedTuple):
    """A rate limit: so many requests in a window of so many seconds."""

    requests: int
    seconds: int


class SettingsError(Exception):
    """Errors in the environment: one line a setting, for the user."""


def http_url(text: str) -> str:
    """Returns the URL. Raises ValueError unless it is an http or https URL."""
    try:
        url = urlsplit(text)
        url.port  # noqa: B018  (the property is what checks the port)
        host = (url.hostname or "").encode("idna")
    except ValueError:
        raise ValueError("is no URL") from None
    if url.scheme not in ("http", "https") or not host:
        raise ValueError("must begin with http:// or https:// and a host")
    if "@" in url.netloc or "#" in text or re.search(r"[^!-~]", text):
        raise ValueError("must be without a user, a #, spaces and what is not ASCII")
    return text


def server_url(text: str) -> str:
    """Returns the server's URL without trailing slashes. Raises ValueError when it is invalid."""
    if "?" in http_url(text):
        raise ValueError("must be without a query")
    return text.rstrip("/")


def origin_of(text: str) -> str:
    """Returns the URL's origin as browsers and Better Auth write it: lower case, no default port, ASCII.

    Raises ValueError when there is none.
    """
    url = urlsplit(text)
    host = url.hostname or ""
    if ":" in host:
        host = f"[{IPv6Address(host)}]"
    elif not host.isascii():
        host = idna.encode(host, uts46=True).decode()  # IDNAError is a ValueError
    usual = url.port in (None, USUAL_PORTS.get(url.scheme))
    return f"{url.scheme}://{host}" + ("" if usual else f":{url.port}")


def origins(value: str) -> tuple[str, ...]:
    """Splits the comma-separated origins. Raises ValueError that names an invalid one."""
    found = []
    for part in filter(None, map(str.strip, value.split(","))):
        try:
            if not ORIGIN.fullmatch(part):
                raise ValueError
            found.append(origin_of(part))
        except ValueError:
            message = f"{part!r} is no origin; write scheme://host[:port], several with commas between them"
            raise ValueError(message) from None
    return tuple(found)


def header_names(value: str) -> tuple[str, ...]:
    """Splits the comma-separated names of headers. Raises ValueError that names an invalid one."""
    found = tuple(filter(None, map(str.strip, value.split(","))))
    for name in found:
        if not HEADER_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a header; write X-One, several with commas between them")
    return found


def path_prefix(value: str) -> str:
    """Returns the path without a trailing slash; `/` becomes empty. Raises ValueError when it is invalid."""
    if not PREFIX.fullmatch(value):
        raise ValueError("is no path like /svc: letters, digits and - . _ ~ between slashes")
    return value.rstrip("/")


def proxies(value: str) -> str:
    """Returns the comma-separated addresses and networks, or `*`. Raises ValueError that names an invalid one."""
    for part in value.split(",") if value.strip() != "*" else ():
        try:
            ip_network(part.strip())
        except ValueError:
            raise ValueError(f"{part.strip()!r} is neither an address nor a network like 10.0.0.0/8") from None
    return value.strip()


def rate(value: str) -> Rate:
    """Returns the rate. Raises ValueError when it is invalid."""
    found = RATE.fullmatch(lowered(value))
    if found is None:
        raise ValueError(
            "is no rate like 600/minute: a whole number from 1 to 999999999, a slash, and second, minute, hour or day"
        )
    return Rate(int(found[1]), UNITS[found[2]])


def lowered(value: str) -> str:
    """Returns the word in lower case, without surrounding white space."""
    return value.strip().lower()


class DatabaseSettings(BaseSettings):
    """The settings of every command, by their upper-case names in the environment or in `.env`."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=False,
    )

    database_url: Annotated[InstanceOf[Address], BeforeValidator(parse_address)] | None = None
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(lowered)] = "info"
    log_format: Annotated[Literal["text", "json"], BeforeValidator(lowered)] = "text"
    db_pool_min: int = Field(default=5, ge=1)
    db_pool_max: int = Field(default=15, ge=1, validate_default=True)
    db_statement_cache: int = Field(default=100, ge=0)

    # Not a model validator, which would not run when any field is invalid: all errors are named at once. The same holds
    # for the secret.
    @field_validator("db_pool_max")
    @classmethod
    def max_is_not_below_min(cls, most: int, info: ValidationInfo) -> int:
        """Rejects a maximum below the minimum."""
        least = info.data.get("db_pool_min", 0)
        if most < least:
            raise ValueError(f"is {most}, below DB_POOL_MIN, which is {least}")
        return most


class Settings(DatabaseSettings):
    """All settings, for commands that serve requests or make tokens."""

    better_auth_url: Annotated[str, AfterValidator(server_url)] | None = None
    better_auth_jwks_url: Annotated[str, AfterValidator(http_url)] | None = None
    better_auth_secret: SecretStr = Field(default=SecretStr(""), validate_default=True)
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    # NoDecode: pydantic-settings expects JSON for a tuple
    frontend_url: Annotated[tuple[str, ...], NoDecode, BeforeValidator(origins)] = ("http://localhost:3000",)
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    web_concurrency: int = Field(default=1, ge=1)
    cors_headers: Annotated[tuple[str, ...], NoDecode, BeforeValidator(header_names)] = ()
    root_path: Annotated[str, AfterValidator(path_prefix)] = ""
    rate_limit: Annotated[InstanceOf[Rate] | None, NoDecode, BeforeValidator(rate)] = None
    keep_alive: int = Field(default=75, ge=1, le=86_400)  # seconds; load balancers keep an idle connection for 60
    forwarded_allow_ips: Annotated[str, AfterValidator(proxies)] = "127.0.0.1,::1"  # all as uvicorn's own

    @field_validator("metrics_port")
    @classmethod
    def is_another_port(cls, port: int | None, info: ValidationInfo) -> int | None:
        """Rejects the port that the API has."""
        if port and port == info.data.get("port"):
            raise ValueError(f"is {port}, as PORT is: the metrics have a port of their own")
        return port

    @field_validator("better_auth_secret")
    @classmethod
    def is_set_and_long_enough(cls, secret: SecretStr, info: ValidationInfo) -> SecretStr:
        """Rejects a secret that is too short, or missing when no URL says where the signers' keys are."""
        length = len(secret.get_secret_value())
        signers = ("better_auth_url", "better_auth_jwks_url")
        has_url = any(info.data.get(name, ...) is not None for name in signers)  # an invalid one is not in the data
        if length == 0 and not has_url and info.data.get("database_url", ...) is not None:
            raise ValueError(
                "is required with DATABASE_URL, unless BETTER_AUTH_URL is set: "
                "set it to the frontend's secret, or BETTER_AUTH_URL to its Better Auth server's address"
            )
        if 0 < length < SECRET_LENGTH:
            raise ValueError(
                f"has {length} characters and needs at least {SECRET_LENGTH}; `openssl rand -base64 32` makes one"
            )
        return secret

    @property
    def secret(self) -> str | None:
        """The secret that signs HS256 tokens; None when there is none, and then none is accepted.

        With the embedded database, one is made and kept. Raises embedded.Unusable when the data folder is not writable.
        """
        if secret := self.better_auth_secret.get_secret_value():
            return secret
        return embedded.kept_secret() if self.database_url is None else None

    @property
    def jwks_url(self) -> str | None:
        """The URL of the Better Auth server's keys; None when no server is set.

        As in Better Auth, a path in BETTER_AUTH_URL is its API's, which is /api/auth by default.
        """
        if self.better_auth_jwks_url is not None or self.better_auth_url is None:
            return self.better_auth_jwks_url
        return self.better_auth_url + ("/jwks" if urlsplit(self.better_auth_url).path else "/api/auth/jwks")

    @property
    def published_issuer(self) -> str | None:
        """The `iss` of a token signed with a published key; Better Auth uses the origin of its URL."""
        return self.jwt_issuer or (origin_of(self.better_auth_url) if self.better_auth_url else None)

    @property
    def published_audience(self) -> str | None:
        """The `aud` of a token signed with a published key; Better Auth uses the same."""
        return self.jwt_audience or (origin_of(self.better_auth_url) if self.better_auth_url else None)

    def address(self) -> Address:
        """The database's address. Raises embedded.Unusable when the embedded one is not running."""
        return self.database_url or parse_address(embedded.url())


def load() -> Settings:
    """Reads the environment and `.env`. Raises SettingsError, which names all errors."""
    settings = _load(Settings)
    for name, value in dotenv_values(".env").items():
        if name.startswith("OTEL_") and value:
            os.environ.setdefault(name, value)  # where OpenTelemetry reads them
    wants_traces()
    return settings


def wants_traces() -> bool:
    """Returns whether OpenTelemetry's variables ask for traces. Raises SettingsError when they ask for others."""
    found = {name: value.strip().lower() for name, value in os.environ.items() if name.startswith("OTEL_") and value}
    exporter = found.get("OTEL_TRACES_EXPORTER", "otlp")
    if not found or found.get("OTEL_SDK_DISABLED") == "true" or exporter == "none":
        return False
    if exporter != "otlp":
        raise SettingsError(f"OTEL_TRACES_EXPORTER: Input should be 'otlp' or 'none', not {exporter!r}")
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if name in found:
            if found[name] != "http/protobuf":
                raise SettingsError(f"{name}: Input should be 'http/protobuf', not {found[name]!r}")
            break
    return True


def load_database() -> DatabaseSettings:
    """As `load`, for commands that only need the database: other settings may be missing or invalid."""
    return _load(DatabaseSettings)


def _load(kind: type[S]) -> S:
    forget_environment()  # from here on only the settings say where the database is
    try:
        return kind()
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False, include_input=False):
            name = ".".join(str(part) for part in problem["loc"][:1]).upper()
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{name}: {message}" if name else message)
        raise SettingsError("\n".join(lines)) from None
    except (OSError, UnicodeError) as error:
        raise SettingsError(f".env cannot be read: {error}") from None
