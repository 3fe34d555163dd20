"""The access rules as data: rooms of resource types, and for each role its rights in each room.

What no row allows is refused. docs/access.md shows these tables; access.py acts on them and has no rules of its own.

A relation is a claim about a resource and the caller's organization, or one that is part of it:

    everyone   holds for every resource
    patients   every patient that the resource is about is the organization's (PATIENTS says what that means), and
               it is no proof of a notice to another (PROOF_OF_OWN)
    targets    every resource here that a Provenance is about may be changed by the organization
    agreed     so is every patient, and a Contract about each gives records of the type (agreements.py)
    addressed  so is every patient, and it is the proof of a notice that the organization is a recipient of
    attached   a DocumentReference that the organization may read attaches it (attachments.py), and it names no
               security context
    context    the organization may read what it names as its security context (security_contexts.py)
    sent       the organization wrote a version of it
    provided   an Encounter whose serviceProvider the organization is
    managed    a Group whose managingEntity the organization is
    contracted a Group that an executed Contract is about whose authority or subject the organization is
    party      a Contract with the organization as authority or subject, or about a Group that it manages
    owned      a directory entry that belongs to the organization (OWNERS)
    itself     the organization's own Organization
    published  one of the server's topics, as Basic
    kept       a Subscription that the server keeps for the organization, for a PractitionerRole there, or for a
               Contract with the organization as authority or subject
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from app.authentication.caller import Role
from app.fhir import definitions

Room = Literal[
    "patient",
    "record",
    "consent",
    "basic",
    "directory",
    "reference",
    "group",
    "contract",
    "subscription",
    "paper",
    "provenance",
    "audit",
    "closed",
]
Relation = Literal[
    "everyone",
    "patients",
    "agreed",
    "addressed",
    "attached",
    "context",
    "targets",
    "sent",
    "provided",
    "managed",
    "contracted",
    "party",
    "owned",
    "itself",
    "published",
    "kept",
]
# The ways in which a patient is an organization's.
Belonging = Literal["attributed", "treated", "member"]


@dataclass(frozen=True, slots=True)
class Rule:
    """The rights of a role in a room: any one relation of a list is enough.

    `read` holds for every kind of reading. A change needs one of `old` for the version that is there and one of `new`
    for the version that is to be; a deletion the first alone, and a create the second, or nothing where `fresh`.
    Where it `stays`, nothing is deleted.
    """

    read: tuple[Relation, ...] = ()
    old: tuple[Relation, ...] = ()
    new: tuple[Relation, ...] = ()
    fresh: bool = False
    stays: bool = False


NOTHING = Rule()
ALL = Rule(read=("everyone",), old=("everyone",), new=("everyone",))
_DIRECTORY = Rule(read=("everyone",), old=("owned", "itself"), new=("owned", "itself"))
_REFERENCE = Rule(read=("everyone",))
_OWN = Rule(read=("sent",), old=("sent",), new=("everyone",))
_PAPER = Rule(read=("sent", "attached", "context"), old=("sent",), new=("everyone",))
_PAPER_OF_HOSPITAL = Rule(read=("sent", "context"), old=("sent",), new=("everyone",))
_SUBSCRIPTION = Rule(read=("sent", "kept"), old=("sent",), new=("everyone",))
_PARTY = Rule(read=("party",))
_PROVENANCE = Rule(read=("patients", "sent"), new=("targets",))
_RECORD = Rule(read=("patients",), old=("patients",), new=("patients",))
_SENT_RECORD = Rule(read=("sent", "provided"), old=("sent", "provided"), new=("patients",))
_BASIC = Rule(read=("patients", "published"), old=("patients",), new=("patients",))
# A deletion would take the patient from everybody else whose it is.
_PATIENT = Rule(read=("patients",), old=("patients",), new=("patients",), fresh=True, stays=True)

RULES: Mapping[Role, Mapping[Room, Rule]] = {
    "practice": {
        "patient": _PATIENT,
        "record": _RECORD,
        "consent": _RECORD,
        "basic": _BASIC,
        "directory": _DIRECTORY,
        "reference": _REFERENCE,
        "group": Rule(read=("managed",)),
        "subscription": _SUBSCRIPTION,
        "paper": _PAPER,
        "provenance": _PROVENANCE,
    },
    "hospital": {
        "patient": _PATIENT,
        "record": _SENT_RECORD,
        "consent": _SENT_RECORD,
        "basic": Rule(read=("sent", "published"), old=("sent",), new=("patients",)),
        "directory": _DIRECTORY,
        "reference": _REFERENCE,
        "subscription": _OWN,
        "paper": _PAPER_OF_HOSPITAL,
        "provenance": Rule(read=("sent",), new=("targets",)),
    },
    "plan": {
        "patient": _PATIENT,
        "record": _RECORD,
        "consent": _RECORD,
        "basic": _BASIC,
        "directory": _DIRECTORY,
        "reference": _REFERENCE,
        "group": Rule(read=("managed", "contracted"), old=("managed",), new=("managed",)),
        "contract": _PARTY,
        "subscription": _SUBSCRIPTION,
        "paper": _PAPER,
        "provenance": _PROVENANCE,
    },
    "state": {
        "patient": Rule(read=("patients",)),
        "record": Rule(read=("agreed", "addressed")),
        "consent": Rule(read=("agreed",)),
        "basic": Rule(read=("agreed", "published")),
        "directory": _REFERENCE,
        "reference": _REFERENCE,
        "group": Rule(read=("managed", "contracted")),
        "contract": _PARTY,
        "subscription": _SUBSCRIPTION,
        "paper": Rule(read=("attached", "context")),
        "provenance": Rule(read=("agreed",)),
    },
    # It keeps the directory for everybody, and sees no patient.
    "directory": {"directory": ALL, "reference": _REFERENCE},
    # It says what patients consent to, and takes labels away: of records it writes nothing else (consent_check.py).
    "consent-authority": {
        "patient": Rule(read=("everyone",)),
        "record": Rule(read=("everyone",), old=("everyone",), new=("everyone",)),
        "consent": ALL,
        "directory": _REFERENCE,
        "reference": _REFERENCE,
        "subscription": _OWN,
    },
}

# The way in which a patient is a role's: in its primary care now, treated there, or a member of a plan or Group now.
PATIENTS: Mapping[Role, Belonging] = {
    "practice": "attributed",
    "hospital": "treated",
    "plan": "member",
    "state": "member",
}
# A plan's members are those of its Coverages, and of Groups that a Contract designates: a Group that it manages is
# written by itself. A state agency writes none, so that those it manages designate its members too.
BY_COVERAGE: frozenset[Role] = frozenset({"plan"})

# Who reads the ledger of notices beside administrators: who owes them, and whom a contract has them sent to.
PROOF_ROLES: frozenset[Role] = frozenset({"plan", "state"})
# Who is told itself: of the proof of notices it reads what it is a recipient of.
PROOF_OF_OWN: frozenset[Role] = frozenset({"practice"})
# Who has the timeliness of notices counted; a practice its own.
REPORT_ROLES: frozenset[Role] = PROOF_ROLES | {"practice"}

# Who asks which of its members or patients need something, and how often they are in hospital.
WORKBENCH_ROLES: frozenset[Role] = frozenset({"plan", "practice"})

# Security contexts by which a role reads no Binary: an agency knows its members, and reads what Contracts are about.
NO_CONTEXTS: Mapping[Role, frozenset[str]] = {"state": frozenset({"Patient"})}

# Roles that a patient's general refusal of access for providers is not about (docs/consent.md, "authority").
NO_PROVIDERS: frozenset[Role] = frozenset({"plan", "state"})

# Roles of organizations that care for patients: they gain or lose patients by who is named as primary care provider.
PROVIDERS: frozenset[Role] = frozenset({"practice", "hospital"})

# Read past consent and labels: the organization knows it already. Only administrators and consent authorities read
# what is labelled V.
KNOWN_ALREADY: frozenset[Relation] = frozenset({"sent", "provided"})

# The search parameter and the element that say whose word a resource is. What names an Organization is written, changed
# and deleted by that one alone.
SPEAKS_FOR: Mapping[str, tuple[str, str]] = {
    "Coverage": ("payor", "payor"),
    "Encounter": ("service-provider", "serviceProvider"),
}

# The search parameter that names a directory entry's owner. Entries of other types have none but `itself`.
OWNERS: Mapping[str, str] = {
    "Endpoint": "organization",
    "HealthcareService": "organization",
    "Location": "organization",
    "PractitionerRole": "organization",
}
# Elements that decide whose patient somebody is, or who is told: who keeps the directory writes them. The owner of an
# entry changes the others, and may end it: set `active` to false, or its period to an earlier end.
FIXED: Mapping[str, tuple[str, ...]] = {
    "Organization": ("partOf",),
    "PractitionerRole": ("organization", "practitioner", "code"),
}
KEEPERS: frozenset[Role] = frozenset({"administrator", "directory"})

# The search parameter and the element whose targets on this server have to be ones that the writer sees, but for those
# that the version before has already.
LEADS_TO: Mapping[str, tuple[str, str]] = {
    "Patient": ("link", "link"),
}
# The same of targets that its token has to let it read as well.
LEADS_TO_READ: Mapping[str, tuple[str, str]] = {
    "Binary": ("security-context", "securityContext"),
}
# The same of targets that have to be the writer's to change.
LEADS_TO_OWN: Mapping[str, tuple[str, str]] = {
    "Organization": ("endpoint", "endpoint"),
    "PractitionerRole": ("endpoint", "endpoint"),
}

_DIRECTORY_TYPES = (
    "Endpoint",
    "HealthcareService",
    "Location",
    "Organization",
    "OrganizationAffiliation",
    "Practitioner",
    "PractitionerRole",
)
# Definitions and lists that are about no person.
_REFERENCE_TYPES = (
    "ActivityDefinition",
    "CapabilityStatement",
    "ChargeItemDefinition",
    "CodeSystem",
    "CompartmentDefinition",
    "ConceptMap",
    "EventDefinition",
    "GraphDefinition",
    "ImplementationGuide",
    "InsurancePlan",
    "Library",
    "Measure",
    "Medication",
    "MedicationKnowledge",
    "MedicinalProduct",
    "MedicinalProductAuthorization",
    "MedicinalProductContraindication",
    "MedicinalProductIndication",
    "MedicinalProductIngredient",
    "MedicinalProductInteraction",
    "MedicinalProductManufactured",
    "MedicinalProductPackaged",
    "MedicinalProductPharmaceutical",
    "MedicinalProductUndesirableEffect",
    "MessageDefinition",
    "NamingSystem",
    "ObservationDefinition",
    "OperationDefinition",
    "PlanDefinition",
    "Questionnaire",
    "SearchParameter",
    "SpecimenDefinition",
    "StructureDefinition",
    "StructureMap",
    "Substance",
    "SubstanceNucleicAcid",
    "SubstancePolymer",
    "SubstanceProtein",
    "SubstanceReferenceInformation",
    "SubstanceSourceMaterial",
    "SubstanceSpecification",
    "TerminologyCapabilities",
    "ValueSet",
)
# About patients, though R4 puts them in no patient's compartment.
_FURTHER_RECORDS = ("Device", "GuidanceResponse", "Task")
_ALONE: Mapping[str, Room] = {
    "Patient": "patient",
    "Group": "group",
    "Contract": "contract",
    "Subscription": "subscription",
    "Binary": "paper",
    "Bundle": "paper",
    "Provenance": "provenance",
    "AuditEvent": "audit",
    # They may link records that no one person must see together.
    "Person": "closed",
    "Schedule": "closed",
    "Basic": "basic",
    "Consent": "consent",
}

ROOMS: Mapping[str, Room] = {
    **{name: "record" for name, codes in definitions.compartment("Patient").items() if codes},
    **dict.fromkeys(_FURTHER_RECORDS, "record"),
    **dict.fromkeys(_DIRECTORY_TYPES, "directory"),
    **dict.fromkeys(_REFERENCE_TYPES, "reference"),
    **_ALONE,
}


def room_of(resource_type: str) -> Room:
    """The room of a type; one that no list names is closed to all but administrators."""
    return ROOMS.get(resource_type, "closed")


def rule_of(role: Role | None, resource_type: str) -> Rule:
    """The rights of a role to resources of a type; NOTHING where no table has any."""
    if role is None:
        return NOTHING
    if role == "administrator":
        return Rule(read=("everyone",)) if room_of(resource_type) == "audit" else ALL
    return RULES.get(role, {}).get(room_of(resource_type), NOTHING)
