"""The meaning of each reference in a Bundle: another entry, a record of this server, or one of somebody else's.

https://hl7.org/fhir/R4/bundle.html#references and https://hl7.org/fhir/R4/http.html#trules;
docs/decisions/0032-references-of-bundles.md

Pure: no store, no context. Every door that takes Bundles uses it alike, in two steps. First, where a door has to find
out which entry a reference means before it knows what becomes of the entries:

    named = [NamedEntry.of(i, entry.get("fullUrl"), entry.get("resource")) for i, entry in enumerate(entries)]
    EntryReferences(named, own_bases).meaning(0, "Patient/77").entry    # the index of the entry meant, or None

Then, when each entry has its record (`target`, as "Patient/0197...": what it matched, or the id that it will have):

    settled = [replace(each, target=targets.get(each.index)) for each in named]
    body = EntryReferences(settled, own_bases).rewritten(0, resource)   # raises Unprocessable with the FHIRPath

A relative reference is read against the root of its own entry's fullUrl. So `Patient/77` is,

- below https://ehr.example.org/fhir: the entry https://ehr.example.org/fhir/Patient/77, else kept as that absolute URL;
- below our own base: the entry with that name there, or with that type and id and no fullUrl, else our own record;
- in an entry that is urn:uuid or urn:oid: the same, unless another server's entry has that type and id: then refused;
- without a fullUrl, or with one that is no address of a FHIR server: the same; but in a Bundle of others' fullUrls (any
  that is neither ours nor such a URN) what is no entry of these is refused, and never our record.

Absolute references mean the entry with that fullUrl, else what they say. Entries that share a name and have not the
same target leave open which is meant: refused. Nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from app.errors import Unprocessable
from app.fhir.definitions import SUPPORTED_TYPES
from app.fhir.full_urls import RELATIVE, RESTFUL, spelled
from app.fhir.json import Resource
from app.fhir.links import LinkKind, LinkRefused, rewrite

_TYPES = frozenset(SUPPORTED_TYPES)
# The root of our own addresses, so that they have the names by which we store them.
_OURS = ""
# Names within a Bundle, which are of no server.
_URNS = ("urn:uuid:", "urn:oid:")

_AMBIGUOUS = "More than one entry of the Bundle may be meant; give each its own fullUrl"
_NO_ROOT = (
    "The Bundle has entries of another server, and the fullUrl of this one does not say whose the reference is: "
    "give the entry a fullUrl, or write the reference as an absolute URL"
)
_OTHERS_NAME = (
    "The Bundle has an entry of another server with this type and id, and the fullUrl of this one does not say whose "
    "the reference is: give the entry a fullUrl of that server, or write the reference as an absolute URL"
)


@dataclass(frozen=True, slots=True)
class NamedEntry:
    """An entry as its Bundle names it: by fullUrl, or by type and id where it has none.

    `target` is the record of this server that it is or becomes, as `Patient/p1`; None while that is not known, or where
    others cannot refer to it.
    """

    index: int
    full_url: str | None = None
    place: str | None = None
    target: str | None = None

    @classmethod
    def of(cls, index: int, full_url: Any, resource: Any, target: str | None = None) -> NamedEntry:
        """The entry with this fullUrl and resource, as they stand in the Bundle."""
        place = None
        if isinstance(resource, dict):
            resource_type, resource_id = resource.get("resourceType"), resource.get("id")
            if isinstance(resource_type, str) and isinstance(resource_id, str):
                place = f"{resource_type}/{resource_id}"
        return cls(index, full_url if isinstance(full_url, str) else None, place, target)


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a reference means.

    `entry`: the one of the Bundle with index `entry`. `ours`: a record of this server, or a search for one. `kept`:
    something elsewhere, which stays as the absolute `reference`. `refused`: nobody can tell, for this `reason`.
    `reference` is what is to be stored, empty for an entry without a target.
    """

    kind: Literal["entry", "ours", "kept", "refused"]
    reference: str = ""
    entry: int | None = None
    reason: str = ""


class EntryReferences:
    """The names of a Bundle's entries, and what references in them mean."""

    def __init__(
        self,
        entries: Iterable[NamedEntry],
        own_bases: Collection[str],
        why_no_target: str = "The entry that is meant has no record that could be referred to",
    ) -> None:
        """`own_bases` are the FHIR bases of this server; `why_no_target` tells why an entry may be without one."""
        self._own = {spelled(base.rstrip("/")) for base in own_bases if base}
        self._why_no_target = why_no_target
        self._named: dict[str, list[NamedEntry]] = {}
        # The entries of other servers by type and id alone.
        self._others: set[str] = set()
        # The root of each entry's fullUrl; None where it has none of any server.
        self._roots: dict[int, str | None] = {}
        # Whether the entry says by its fullUrl that it is of no other server.
        self._is_at_home: dict[int, bool] = {}
        self._has_others = False
        # What `concerns` has said of texts with a path.
        self._concerned: dict[str, bool] = {}
        for entry in entries:
            self._add(entry)

    def _add(self, entry: NamedEntry) -> None:
        url = entry.full_url or ""
        root, place = self._split(spelled(url)) if url else (None, entry.place)
        if RELATIVE.fullmatch(url):  # against R4, and sent all the same: a name without a root
            place = url
        is_at_home = root == _OURS or url.lower().startswith(_URNS)
        self._roots[entry.index] = root
        self._is_at_home[entry.index] = is_at_home
        self._has_others |= bool(url) and not is_at_home
        names = {url} if url else set()
        if place is not None:
            names.add(f"{root}/{place}" if root else place)
            if root:
                self._others.add(place)
        for name in names:
            self._named.setdefault(name, []).append(entry)

    def _split(self, url: str) -> tuple[str | None, str | None]:
        """Root and type with id of the address of a resource, the root empty where it is ours."""
        found = RESTFUL.fullmatch(url)
        if found is None or found[2] not in _TYPES:
            return None, None
        # Servers read a slash too many as one.
        root = found[1].rstrip("/")
        root = _OURS if root in self._own else root
        return root, f"{found[2]}/{found[3]}"

    def is_of_others(self, entry: int) -> bool:
        """Whether an entry's fullUrl is an address on another server."""
        return bool(self._roots.get(entry))

    def is_ours(self, entry: int) -> bool:
        """Whether an entry is named by this server's ids: it is of no other, and does not leave that open."""
        is_at_home = self._is_at_home.get(entry, False)
        return not self.is_of_others(entry) and (is_at_home or not self._has_others)

    def root(self, entry: int) -> str:
        """The root of the other server on which an entry's fullUrl is an address, else nothing."""
        return self._roots.get(entry) or ""

    def meaning(self, entry: int, reference: str) -> Meaning:
        """What a reference means that stands in the entry with this index."""
        target, mark, fragment = reference.partition("#")
        if not target:
            return Meaning("kept", reference)
        relative = RELATIVE.fullmatch(target)
        if relative is not None and relative[1] in _TYPES:
            place, version = f"{relative[1]}/{relative[2]}", relative[3] or ""
            return self._relative(entry, place, version, mark + fragment)
        if target in self._named:
            return self._entry(self._named[target], mark + fragment)
        return self._absolute(spelled(target), mark + fragment, reference)

    def _relative(self, entry: int, place: str, version: str, fragment: str) -> Meaning:
        root, written = self._roots.get(entry), f"{place}{version}{fragment}"
        if root:
            name = f"{root}/{place}"
            if name in self._named:
                return self._entry(self._named[name], fragment)
            return Meaning("kept", f"{root}/{written}")
        if root is None and place in self._others:
            return Meaning("refused", reason=_OTHERS_NAME)
        if place in self._named:
            return self._own_entry(self._named[place], place, version, fragment)
        if self._has_others and not self._is_at_home.get(entry, False):
            return Meaning("refused", reason=_NO_ROOT)
        return Meaning("ours", written)

    def _absolute(self, target: str, fragment: str, reference: str) -> Meaning:
        found = RESTFUL.fullmatch(target)
        if found is None or found[2] not in _TYPES:
            return self._other(target, reference)
        place, version = f"{found[2]}/{found[3]}", found[4] or ""
        root = found[1].rstrip("/")
        if root in self._own:
            # One without a fullUrl has no address that could be meant.
            named = [each for each in self._named.get(place, ()) if each.full_url]
            if named:
                return self._own_entry(named, place, version, fragment)
            return Meaning("ours", reference)
        name = f"{root}/{place}"
        if name in self._named:
            return self._entry(self._named[name], fragment)
        return Meaning("kept", reference)

    def _other(self, target: str, reference: str) -> Meaning:
        """A URN, a search, or what is no address of a resource."""
        root, mark, _ = target.partition("?")
        if not mark:
            return Meaning("kept", reference)
        base, _, resource_type = root.rpartition("/")
        if resource_type in _TYPES and (not base or base in self._own):
            return Meaning("ours", reference[len(root) - len(resource_type) :])
        return Meaning("kept", reference)

    def _own_entry(
        self, named: Sequence[NamedEntry], place: str, version: str, fragment: str
    ) -> Meaning:
        """An entry under our base; a version of it is still that version where the entry stays in its place."""
        found = self._entry(named, fragment)
        if version and found.kind == "entry" and found.reference == place + fragment:
            return Meaning("entry", f"{place}{version}{fragment}", found.entry)
        return found

    def _entry(self, named: Sequence[NamedEntry], fragment: str) -> Meaning:
        if len({each.target or each.index for each in named}) > 1:
            return Meaning("refused", reason=_AMBIGUOUS)
        first = named[0]
        if first.target is None:
            return Meaning("entry", "", first.index, self._why_no_target)
        return Meaning("entry", first.target + fragment, first.index)

    def rewritten(
        self, entry: int, resource: Resource, known: Collection[str] = frozenset()
    ) -> Resource:
        """The entry's resource with all links as they are to be stored, what does not change shared with the original.

        `known` are links that are this server's already, as those of a record that a patch leaves alone. Raises
        Unprocessable, naming the place, for a link that is refused.
        """
        try:
            return rewrite(resource, _OfEntry(self, entry, known))
        except LinkRefused as refused:
            place = refused.expression(f"Bundle.entry[{entry}].resource")
            raise Unprocessable(refused.reason, code="value", expression=place) from None

    def concerns(self, text: str) -> bool:
        """Whether an address may mean an entry, be relative, or be one of ours."""
        if text in self._named:
            return True
        if "/" not in text and "#" not in text:
            return False
        found = self._concerned.get(text)
        if found is None:
            found = self._concerned[text] = self._may_change(text)
        return found

    def _may_change(self, text: str) -> bool:
        target = text.partition("#")[0]
        if target in self._named:
            return True
        target = target.partition("|")[0]  # the version of a canonical
        if RESTFUL.fullmatch(target):
            # Systems of codes and identifiers look like that, and stay.
            return self._absolute(spelled(target), "", target).kind != "kept"
        return RELATIVE.fullmatch(target) is not None

    def exchanged(self, entry: int, text: str, kind: LinkKind) -> str:
        """A link as it is to be stored. Raises LinkRefused."""
        if (
            kind == "canonical"
        ):  # R4 replaces none of these by entries; a relative one still has a root
            found = RELATIVE.fullmatch(text.partition("|")[0])
            root = self._roots.get(entry)
            return f"{root}/{text}" if root and found and found[1] in _TYPES else text
        meaning = self.meaning(entry, text)
        if not meaning.reference:
            raise LinkRefused(meaning.reason)
        return meaning.reference


class _OfEntry:
    """What becomes of the links of one entry."""

    def __init__(self, names: EntryReferences, entry: int, known: Collection[str]) -> None:
        self._names = names
        self._entry = entry
        self._known = known
        self.concerns = names.concerns

    def __call__(self, text: str, kind: LinkKind) -> str:
        return text if text in self._known else self._names.exchanged(self._entry, text, kind)
