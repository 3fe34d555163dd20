"""Who must see and may write what, said a second time: in words of its own, and without a look at the server's rules.

A practice has the patients whose primary care provider it is, a hospital the patients and visits that it sent, a plan
its members, a state agency its designated group and of these what its Contract is about, an administrator all. What no
row here opens is closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

ROLES: Mapping[str, str] = {
    "admin": "administrator",
    "north": "practice",
    "south": "practice",
    "general": "hospital",
    "city": "hospital",
    "plan-a": "plan",
    "plan-b": "plan",
    "agency": "state",
    "bureau": "state",
}
CLIENTS = tuple(ROLES)
ORGANIZATIONS = tuple(each for each in CLIENTS if each != "admin")

# Whose each patient is. `pb` was in both hospitals; nobody has anything to do with `px`.
WHOSE: Mapping[str, frozenset[str]] = {
    "pn": frozenset({"north", "general", "plan-a", "agency"}),
    "ps": frozenset({"south", "city", "plan-b", "bureau"}),
    "pb": frozenset({"north", "general", "city", "plan-a", "agency"}),
    "px": frozenset(),
}

# Types of which each is about patients, by the element that says about whom.
ABOUT: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "AllergyIntolerance",
            "BodyStructure",
            "Claim",
            "ClaimResponse",
            "Consent",
            "CoverageEligibilityRequest",
            "CoverageEligibilityResponse",
            "DetectedIssue",
            "Device",
            "EpisodeOfCare",
            "ExplanationOfBenefit",
            "FamilyMemberHistory",
            "Immunization",
            "ImmunizationEvaluation",
            "ImmunizationRecommendation",
            "MolecularSequence",
            "NutritionOrder",
            "RelatedPerson",
            "SupplyDelivery",
            "VisionPrescription",
        ),
        "patient",
    ),
    **dict.fromkeys(
        (
            "AdverseEvent",
            "Basic",
            "CarePlan",
            "CareTeam",
            "ChargeItem",
            "ClinicalImpression",
            "Communication",
            "CommunicationRequest",
            "Composition",
            "Condition",
            "DeviceRequest",
            "DeviceUseStatement",
            "DiagnosticReport",
            "DocumentManifest",
            "DocumentReference",
            "Encounter",
            "Flag",
            "Goal",
            "GuidanceResponse",
            "ImagingStudy",
            "Invoice",
            "List",
            "MeasureReport",
            "Media",
            "MedicationAdministration",
            "MedicationDispense",
            "MedicationRequest",
            "MedicationStatement",
            "Observation",
            "Procedure",
            "QuestionnaireResponse",
            "RequestGroup",
            "RiskAssessment",
            "ServiceRequest",
            "Specimen",
        ),
        "subject",
    ),
    "Account": "subject",
    "Appointment": "participant.actor",
    "AppointmentResponse": "actor",
    "Coverage": "beneficiary",
    "EnrollmentRequest": "candidate",
    "Patient": "",
    "Provenance": "target",
    "ResearchSubject": "individual",
    "SupplyRequest": "deliverTo",
    "Task": "for",
}
# Types whose element may name several.
MANY = frozenset({"Account", "Appointment", "Provenance"})
# What the Contracts of the state agencies are about: of no other type do they see anything of their members.
AGREED: Mapping[str, frozenset[str]] = {
    "agency": frozenset({"Condition", "Encounter"}),
    "bureau": frozenset({"Condition", "Encounter", "Observation"}),
}
DIRECTORY = frozenset(
    {
        "Endpoint",
        "HealthcareService",
        "Location",
        "Organization",
        "OrganizationAffiliation",
        "Practitioner",
        "PractitionerRole",
    }
)
# They say something of the world and nothing of anybody in it.
DEFINITIONS = frozenset(
    {
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
    }
)
OPEN = DIRECTORY | DEFINITIONS
# Of whom there is one for everybody: the types that each reads, and reads all of.
KEEPERS: Mapping[str, frozenset[str]] = {
    "registrar": OPEN,
    "registry": OPEN | (frozenset(ABOUT) - {"Basic", "Provenance"}),
}
# What names an organization as its own is that one's to write, whoever else has the patient.
ITS_WORD = frozenset({"Coverage", "Encounter"})
# Whose they are is who sent them; a Binary or Bundle is also for whom a DocumentReference that attaches it is for.
SENDERS = frozenset({"Binary", "Bundle", "Subscription"})


class Outcome(StrEnum):
    """`hidden`: as if there were none. `closed`: nothing of the type may be asked for, whether it is there or not."""

    SEEN = "seen"
    HIDDEN = "hidden"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Record:
    """Something that lies in the database, with all that matters for who sees it.

    `about` has patients; `form` is how it names them: as R4 has it, by an absolute or a versioned reference, or by one
    to another server. `author` is the client that sent it, `owner` whose it says it is: an Encounter's hospital, a
    Coverage's plan, who manages a Group. `parties` are those of a Contract, or of the Contract about a Group. A Binary
    or Bundle is about those whom a DocumentReference by its author attaches it to. `label` is a code of
    confidentiality.
    """

    resource_type: str
    id: str
    about: tuple[str, ...] = ()
    author: str = "admin"
    owner: str | None = None
    label: str = ""
    form: str = "relative"
    parties: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        return f"{self.resource_type}/{self.id}"

    @property
    def patients(self) -> tuple[str, ...]:
        """Those that are named so that it means them here."""
        return () if self.form == "elsewhere" else self.about


def is_closed(who: str, resource_type: str) -> bool:
    """Whether a type is nothing for a client's role at all."""
    role = ROLES[who]
    if role == "administrator":
        return False
    if resource_type == "Group":
        return role == "hospital"
    if resource_type == "Contract":
        return role in ("practice", "hospital")
    return resource_type not in ABOUT.keys() | OPEN | SENDERS


def expected(who: str, record: Record) -> Outcome:
    """What a client with all scopes must find."""
    if ROLES[who] == "administrator":
        return Outcome.SEEN
    if is_closed(who, record.resource_type):
        return Outcome.CLOSED
    return Outcome.SEEN if record.label != "V" and _sees(who, record) else Outcome.HIDDEN


def _sees(who: str, record: Record) -> bool:
    type_ = record.resource_type
    if type_ in OPEN:
        return True
    if type_ in SENDERS and record.author == who:
        return True
    if type_ in ("Group", "Contract"):
        return who in (record.owner, *record.parties)
    if _is_sender(who, record):
        return True
    is_patient = bool(record.patients) and all(who in WHOSE[each] for each in record.patients)
    if record.label == "R" or not is_patient:
        return False
    if ROLES[who] == "state" and type_ != "Patient":
        # A document goes with the DocumentReference that attaches it.
        return ("DocumentReference" if type_ in SENDERS else type_) in AGREED[who]
    return ROLES[who] != "hospital" or type_ == "Patient"


def _is_sender(who: str, record: Record) -> bool:
    """Hospitals see what they sent, and the visits that they provide."""
    if ROLES[who] == "practice" or ROLES[who] == "plan":
        # Whose patients they are is all that counts.
        return record.resource_type == "Provenance" and record.author == who
    if ROLES[who] != "hospital":
        return False
    is_own_visit = record.resource_type == "Encounter" and record.owner == who
    return record.author == who or is_own_visit


def may_change(who: str, record: Record) -> bool:
    """Whether a client may replace or delete it, everything else unchanged."""
    role, type_ = ROLES[who], record.resource_type
    if role == "administrator":
        return True
    if expected(who, record) is not Outcome.SEEN or type_ in DEFINITIONS:
        return False
    if type_ in ("Provenance", "Contract"):
        return False
    if type_ in DIRECTORY:
        return role != "state" and record.owner == who
    if type_ in SENDERS:
        return record.author == who
    if type_ == "Consent" and record.author != who:
        return False
    if role == "state":
        return False
    if type_ == "Group":
        return role == "plan" and record.owner == who
    return type_ not in ITS_WORD or record.owner in (None, who)


def may_create(who: str, record: Record) -> bool:
    """Whether a client may be the first to write it."""
    role, type_ = ROLES[who], record.resource_type
    if role == "administrator":
        return True
    if is_closed(who, type_) or type_ in OPEN or type_ == "Contract" or role == "state":
        return type_ == "Subscription"
    if type_ in SENDERS or type_ == "Patient":
        return True
    if type_ == "Group":
        return role == "plan" and record.owner == who and _all_own(who, record)
    if type_ in ITS_WORD and record.owner not in (None, who):
        return False
    return bool(record.patients) and _all_own(who, record)


def _all_own(who: str, record: Record) -> bool:
    return all(who in WHOSE[each] for each in record.patients)


# Rights by door: the letters of a scope that each needs on the type that it asks for.
DOORS: Mapping[str, str] = {
    "read": "r",
    "vread": "r",
    "instance history": "r",
    "type history": "s",
    "search": "s",
    "search by POST": "s",
    "compartment search": "s",
    "create": "c",
    "conditional create": "cs",
    "update": "u",
    "conditional update": "us",
    "patch": "ru",
    "conditional patch": "rus",
    "delete": "d",
    "conditional delete": "ds",
    "$meta of an instance": "rs",
}
