"""The context of an interaction: the caller it acts for, and the services of the process it runs in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar, cast

from app.audit import entry
from app.audit.log import AuditLog
from app.authentication.caller import Caller
from app.authentication.scopes import Action
from app.authorization.access import Access, Accesses
from app.authorization.restricted_store import RestrictedStore
from app.authorization.subject_store import IsTold, Subject, SubjectStore
from app.records.reader import ResourceStore
from app.runtime.clock import Clock
from app.runtime.mongo import Mongo
from app.search.page_links import PageLinks, Pairs, Walk
from app.settings import Settings
from app.store.store import Store

P = TypeVar("P")


class Services:
    """The parts that live as long as the process; main.py makes all of them, and nothing changes afterwards.

    Parts that every room may use are attributes. Those of rooms above this one are found by their class, so that this
    module need not import them.
    """

    def __init__(
        self,
        settings: Settings,
        mongo: Mongo,
        store: Store,
        clock: Clock,
        accesses: Accesses,
        audit: AuditLog | None,
        parts: Iterable[object],
    ) -> None:
        """`audit` is None where no audit log is kept."""
        self.settings = settings
        self.mongo = mongo
        self.store = store
        self.clock = clock
        self.accesses = accesses
        self.audit = audit
        self.started = mongo.now()
        self._parts = tuple(parts)
        self._by_class: dict[type, object | None] = {}

    def get(self, kind: type[P]) -> P:
        """The part of this class. Raises LookupError where the process has none."""
        part = self.find(kind)
        if part is None:
            raise LookupError(f"this process has no {kind.__name__}")
        return part

    def find(self, kind: type[P]) -> P | None:
        """The part of this class; None where the settings leave it out."""
        if kind not in self._by_class:
            found = (part for part in self._parts if isinstance(part, kind))
            self._by_class[kind] = next(found, None)
        return cast("P | None", self._by_class[kind])


@dataclass(frozen=True, slots=True)
class WriteScope:
    """The other writes of the commit that a write belongs to.

    `creating` are the resources that it creates or updates as (type, id), `deleting` and `writing` those that it
    deletes and that it writes at all, as references. `saw_current`: the writer has seen the version that it changes, by
    a patch or by naming it.
    """

    creating: frozenset[tuple[str, str]] = frozenset()
    deleting: frozenset[str] = frozenset()
    writing: frozenset[str] = frozenset()
    saw_current: bool = False


NO_WRITES = WriteScope()


@dataclass(frozen=True, slots=True)
class Context:
    """The context of one request. `base_url` is the FHIR base as the client sees it, without a trailing slash."""

    services: Services
    caller: Caller
    base_url: str
    handling: Literal["strict", "lenient"] = "strict"
    write_scope: WriteScope = NO_WRITES
    # The caller waits for no result (Prefer: respond-async).
    respond_async: bool = False
    # How a batch or transaction is asked for as a whole: what is found by its entries is cut down on all of its pages.
    shaping: Pairs = ()
    # Whom this is about, where it is to reach nobody else.
    subject: Subject | None = None

    @property
    def settings(self) -> Settings:
        return self.services.settings

    @property
    def access(self) -> Access | None:
        """The access rules of the caller; None for one without limits."""
        return self.services.accesses.of(self.caller)

    @property
    def store(self) -> ResourceStore:
        """The store as the caller may see it, and as far as it is about the subject."""
        access = self.access
        whole = self.services.store
        store = whole if access is None else RestrictedStore(whole, access)
        if self.subject is None:
            return store
        return SubjectStore(store, self.subject, self.settings.base_url.rstrip("/"))

    def about(self, patients: Iterable[str], *own: str) -> Context:
        """The same as far as it is about these patients (`Patient/p1`), and no others than it was about before.

        `own` are references to resources that count though they are about nobody.
        """
        whom = frozenset(patients)
        if self.subject is not None:
            whom &= self.subject.patients
        is_told = None if self.subject is None else self.subject.is_told
        return replace(self, subject=Subject(whom, frozenset(own), is_told))

    def owning(self, reference: str) -> Context:
        """The same with one more resource of its own, which counts though it is about nobody."""
        if self.subject is None:
            return self
        return replace(self, subject=replace(self.subject, own=self.subject.own | {reference}))

    def telling(self, is_told: IsTold) -> Context:
        """The same without what may not be told, for one that is about some patients. Raises ValueError for another."""
        if self.subject is None:
            raise ValueError("about nobody in particular")
        return replace(self, subject=replace(self.subject, is_told=is_told))

    async def walk(self, place: str, parameters: Pairs) -> Walk:
        """The caller's way through the result of what it asks at a place below the base. Raises Gone or BadRequest.

        What stands behind a page link goes on record as if the URL had spelled it.
        """
        links = self.services.get(PageLinks)
        walk = await links.walk(self.caller.client_id, self.base_url, place, parameters)
        if walk.token is not None:
            entry.spell_out(walk.asked)
        return walk

    def require(self, resource_type: str, *actions: Action) -> None:
        """Raises Forbidden where the caller lacks one of the rights (c, r, u, d, s) to a type."""
        access = self.access
        if access is not None:
            for action in actions:
                access.require(resource_type, action)
