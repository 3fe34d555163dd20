"""How far the registry has come, kept outside of the database: who cuts it off there leaves the file behind.

The file holds number, hash and time of a row of the registry, sealed with the server's secret key, so that nobody can
make one for a shorter record. Each machine keeps one for each database; its processes share it. It goes forward alone:
where the row that it names is not in the registry any more it stays as it is, and the server says so each minute, until
an operator has looked (`carerelay audit accept`).

The same can go to a syslog, which others keep. https://www.rfc-editor.org/rfc/rfc5424
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from logging import makeLogRecord
from logging.handlers import SysLogHandler
from pathlib import Path

from app.runtime.mongo import Document
from app.runtime.secrets import Secrets, SecretsError
from app.settings import Settings

_SUFFIX = ".head"


class KeptHeadError(Exception):
    """The file is not what the server wrote; the text says what may have happened to it."""


@dataclass(frozen=True, slots=True)
class Head:
    """A row of the registry: its number, its hash in hexadecimal, when and by which process it was written."""

    number: int
    hash: str
    at: str
    by: str

    @classmethod
    def of(cls, row: Document) -> Head:
        return cls(row["_id"], row["hash"].hex(), row["at"].isoformat(), row["by"])


class KeptHead:
    """The file of one database on this machine."""

    def __init__(self, path: Path, secrets: Secrets) -> None:
        self.path = path
        self._secrets = secrets

    def read(self) -> Head | None:
        """What it holds; None where there is none. Raises KeptHeadError."""
        try:
            text = self.path.read_text()
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise KeptHeadError(f"{self.path} cannot be read: {type(error).__name__}") from None
        try:
            told = json.loads(text)
            sealed = told.pop("seal")
            head = Head(**told)
            if not isinstance(head.number, int) or self._secrets.open(sealed) != _sealed(head):
                raise KeptHeadError(f"{self.path} was changed: it is not what its seal says")
        except SecretsError:
            raise KeptHeadError(
                f"{self.path} was changed, or sealed with a key that is not among this server's any more"
            ) from None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise KeptHeadError(f"{self.path} is damaged") from None
        return head

    def advance(self, head: Head) -> None:
        """Write the head, unless a process of this machine has kept a later one. Raises OSError, KeptHeadError."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked():
            known = self.read()
            if known is None or head.number > known.number:
                self._write(head)

    def begin_anew(self, head: Head, stamp: str) -> Path | None:
        """Write the head whatever there was; returns where the file that was there is now. Raises OSError."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked():
            aside = None
            if self.path.exists():
                aside = self.path.with_name(f"{self.path.name}.{stamp}")
                self.path.rename(aside)
            self._write(head)
        return aside

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _write(self, head: Head) -> None:
        draft = self.path.with_suffix(".new")
        told = {**asdict(head), "seal": self._secrets.seal(_sealed(head))}
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(told, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path)


def _sealed(head: Head) -> str:
    return f"audit head {head.number} {head.hash} {head.at} {head.by}"


def place(settings: Settings) -> Path:
    """The file for the database of the settings: named by where that is, so that another one is no beginning anew."""
    where = settings.mongodb_uri
    if not where or "%2F" in where:  # the embedded one is reached by a socket, wherever that lies
        where = str(settings.data.absolute())
    else:
        where = ",".join(sorted(re.sub(r"^[^/]*//(?:[^@/]*@)?|[/?].*$", "", where).split(",")))
    database = re.sub(r"[^\w-]", "_", settings.mongodb_database)
    digest = sha256(f"{where} {settings.mongodb_database}".encode()).hexdigest()[:12]
    return settings.state_home / "audit" / f"{database}-{digest}{_SUFFIX}"


class Syslog:
    """Sends heads to `address`, a socket's path or host:port by UDP. A message that is lost is followed by the next."""

    def __init__(self, address: str) -> None:
        """Raises OSError where nobody takes it."""
        host, _, port = address.rpartition(":")
        to: str | tuple[str, int] = address if address.startswith("/") else (host, int(port))
        self._handler = SysLogHandler(to, facility=SysLogHandler.LOG_AUTHPRIV)
        self._handler.ident = "carerelay: "

    def send(self, head: Head) -> None:
        told = f"audit row={head.number} hash={head.hash} at={head.at} by={head.by}"
        self._handler.emit(makeLogRecord({"msg": told, "levelname": "NOTICE"}))

    def close(self) -> None:
        self._handler.close()
