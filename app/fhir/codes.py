"""The names that are our own: extensions, code systems and their codes. Everything else is HL7's or the field's."""

from __future__ import annotations

BASE = "http://carerelay.example/"
EXTENSION = BASE + "StructureDefinition/"
CODE_SYSTEM = BASE + "CodeSystem/"

# When the event of an Encounter's message happened (valueDateTime or valueInstant), and what tells of a late one, and
# of one whose status was not applied for want of a time that says what is newer.
EVENT_TIME = EXTENSION + "event-time"
LATE_MESSAGE = BASE + "SubscriptionTopic/encounter-late-message"
UNSETTLED_MESSAGE = BASE + "SubscriptionTopic/encounter-unsettled-message"
# What tells that a client was refused an id since the resource that has it is another's (the client is in the context).
TAKEN_ID = BASE + "SubscriptionTopic/taken-id"
# What tells that the identifiers of a message's Patient are those of several (who sent it, and the others, are the
# context).
AMBIGUOUS_PATIENT = BASE + "SubscriptionTopic/ambiguous-patient"
ENCOUNTER_STATUS = "http://hl7.org/fhir/encounter-status"

# When a Patient.generalPractitioner is one (valuePeriod on the Reference).
ATTRIBUTION_PERIOD = EXTENSION + "attribution-period"
# By which source a member of a panel is a practice's patient (valueCode).
ATTRIBUTION_SOURCE = EXTENSION + "attribution-source"
# A Group whose members are a practice's patients, and its characteristic that names the PCP.
GROUP_KIND = CODE_SYSTEM + "group-kind"
PCP_PANEL = "pcp-panel"
GROUP_CHARACTERISTIC = CODE_SYSTEM + "group-characteristic"
PCP = "pcp"
# Both of SNOMED CT's codes that are in use for the primary care provider in a care team.
SNOMED = "http://snomed.info/sct"
PCP_ROLES = frozenset({"446050000", "453231000124104"})
# To whom a Subscription's notices go (valueReference), and what marks the ones that the server keeps itself.
SUBSCRIPTION_RECIPIENT = EXTENSION + "subscription-recipient"
SUBSCRIPTION_ENDPOINT = EXTENSION + "subscription-endpoint"
SUBSCRIPTION_ORIGIN = CODE_SYSTEM + "subscription-origin"
SUBSCRIPTION_OWNER = CODE_SYSTEM + "subscription-owner"

# A channel type that R4 and R5 have no code for: Da Vinci Unsolicited Notifications.
CHANNEL_TYPE = CODE_SYSTEM + "channel-type"
DAVINCI_ALERTS = "davinci-alerts"

# Case management: EpisodeOfCare.type of an enrolment, and why one ended.
CASE_MANAGEMENT = "case-management"
EPISODE_TYPE = CODE_SYSTEM + "episode-type"
EPISODE_END_REASON = CODE_SYSTEM + "episode-end-reason"
EPISODE_END_REASON_EXTENSION = EXTENSION + "episode-end-reason"

# What marks other resources as matters of case management.
ASSESSMENT_KIND = CODE_SYSTEM + "assessment-kind"
HEALTH_RISK_ASSESSMENT = "health-risk-assessment"
CASE_MANAGEMENT_CANDIDATES = "case-management-candidates"
SERVICE_CATEGORY = CODE_SYSTEM + "service-category"

# What a Consent is about (Consent.category), and the letters (Communication.category) that follow an opt-in.
CONSENT_CATEGORY = CODE_SYSTEM + "consent-category"
PCP_NOTIFICATION = "pcp-notification"
PROVIDER_ACCESS = "provider-access"
PART_2_DISCLOSURE = "part-2"
LETTER_KIND = CODE_SYSTEM + "letter-kind"
LETTER_TO_MEMBER = "opt-in-member"
LETTER_TO_PROVIDER = "opt-in-provider"
# The answer to who has referred a patient to case management, and why it was not taken up (Communication.reasonCode).
LETTER_TO_REFERRER = "referral-answer"
REFERRAL_ANSWER = CODE_SYSTEM + "referral-answer"
REFERRAL_ANSWERS = {
    "already-enrolled": "The patient is in case management already, or about to be",
    "declined": "The patient does not wish to take part",
    "deceased": "The patient has died",
    "not-taken-up": "It was decided not to take the referral up",
}
# Whether a Subscription's recipient is a provider, as by default, or an authority of a state contract (valueCode).
RECIPIENT_KIND = EXTENSION + "recipient-kind"

# The notice of 42 CFR 2.32 in the meta of what was disclosed under a Consent.
REDISCLOSURE_NOTICE = EXTENSION + "redisclosure-notice"

# Flags: their category, and the tiers of risk in ascending order.
CONTINUITY_OF_CARE = "continuity-of-care"
FLAG_CATEGORY = CODE_SYSTEM + "flag-category"
RISK_TIER = CODE_SYSTEM + "risk-tier"
RISK_TIERS = ("low", "moderate", "high", "very-high")

# Tasks that the server keeps: what is due, that it is late, and why the server closed one.
TASK_CODE = CODE_SYSTEM + "task-code"
TASK_BUSINESS_STATUS = CODE_SYSTEM + "task-business-status"
TASK_STATUS_REASON = CODE_SYSTEM + "task-status-reason"
# In whose work list a Task stands (Task.performerType). What no reason names below is for those who run the server.
TASK_QUEUE = CODE_SYSTEM + "task-queue"
OPERATIONS = "operations"
TASK_QUEUES = {
    "care-management": "Care management",
    "consent": "Those who decide about consents",
    "contracts": "Those who answer for contracts",
    OPERATIONS: "Those who run the server",
    "patient-records": "Those who keep patients' records and visits",
    "provider-directory": "Those who keep the directory and who is whose practice",
}

# Who in a care team is called first (CareTeam.participant.role).
CARE_TEAM_ROLE = CODE_SYSTEM + "care-team-role"
POINT_OF_CONTACT = "point-of-contact"

# What `$worklist` is asked, and what a DetectedIssue has no element for: by which day something is to be done
# (valueDate), and whose patient the member is (valueReference).
WORKLIST_QUESTION = CODE_SYSTEM + "worklist-question"
FINDING_DUE = EXTENSION + "finding-due"
FINDING_PRACTICE = EXTENSION + "finding-practice"

# Contracts with states and plans: how many hours there are for a notice, and how long before a person is asked.
CONTRACT_DEADLINE = EXTENSION + "contract-deadline"
CONTRACT_ALERT = EXTENSION + "contract-alert-before"
CONTRACT_ID = BASE + "NamingSystem/contract"
# R4's code system of the names of resource types.
RESOURCE_TYPE = "http://hl7.org/fhir/resource-types"
# The classes of Encounters, and the kinds of places where they are.
ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
ROLE_CODE = "http://terminology.hl7.org/CodeSystem/v3-RoleCode"

# The proof of a notice: what marks its Communication, and what R4 has no element for.
NOTICE_KIND = CODE_SYSTEM + "notice-kind"
EVENT_NOTICE = "event-notification"
NOTICE_ID = BASE + "NamingSystem/notice-id"
NOTICE_SHA_256 = BASE + "NamingSystem/notice-sha256"
NOTICE_COMMITTED = EXTENSION + "notice-committed"
NOTICE_ENDPOINT = EXTENSION + "notice-endpoint"
NOTICE_STATUS = EXTENSION + "notice-http-status"
NOTICE_SUBSCRIPTION = EXTENSION + "notice-subscription"
# The notice went to whoever was the patient's PCP, and to nobody who had asked for single patients.
NOTICE_TO_PCP = EXTENSION + "notice-to-pcp"

# Care plans: what a notice says of one (trigger, and category of the Communication that says it), and sections of ours.
CARE_PLAN_CHANGE = CODE_SYSTEM + "careplan-change"
CARE_PLAN_CHANGES = {
    "activities": "Activities have changed",
    "changed": "Several things have changed",
    "conditions": "The conditions that the plan addresses have changed",
    "created": "The plan is new to the recipient",
    "goals": "Goals were added, changed, met or dropped",
    "period": "The period has changed",
    "risk-tier": "The risk tier has changed",
    "status": "The status has changed",
    "team": "The care team has changed",
}
CARE_PLAN_REVIEW = CODE_SYSTEM + "careplan-annual-review"
CARE_PLAN_REVIEWS = {"yearly": "A year has passed since the last copy"}
CARE_PLAN_SECTION = CODE_SYSTEM + "care-plan-section"
CHANGES_SINCE = "changes"

# Why a person has to look at something (Task.code).
REVIEW_REASON = CODE_SYSTEM + "review-reason"
REVIEW_REASONS = {
    "ambiguous-patient": "A message was refused whose identifiers are those of this patient and of another",
    "before-authorization": "Contracts, topics, Subscriptions or Consents were stored while authorization was off",
    "cancel-without-admission": "A stay was cancelled of which no admission is known",
    "contract-party-missing": "A contract names a group or an organization that is not here",
    "deadline-missed": "A notice was due by contract and has not been delivered",
    "deadline-near": "A notice that is due by contract has not been delivered yet",
    "incomplete-names": "A notice lacked the patient's, the practitioner's or the hospital's name",
    "late-admission": "An admission became known after its discharge",
    "merged-patient": "The record is about a patient that was merged into another",
    "no-end-reason": "Case management ended without a reason",
    "no-endpoint": "The primary care practice has no endpoint",
    "no-enrolment-date": "An enrolment in case management does not say when it began",
    "no-pcp": "No primary care practice is known",
    "no-subject": "The record names no patient",
    "nobody-listens": "The primary care practice has an endpoint, and no Subscription that tells it",
    "opted-out-while-enrolled": "The member does not want case management, and the enrolment goes on",
    "pcp-period-ended": "The primary care practice's responsibility has ended",
    "plan-not-told": "A notice about a care plan could not be made",
    "proposed-consent": "A consent was proposed, and waits for a consent authority",
    "re-enrolment": "The member may need case management again",
    "refused-endpoint": "The server may not call the address of some of the practice's Endpoints",
    "several-pcps": "Several primary care practices are known",
    "subject-by-identifier": "The record names its patient by an identifier alone",
    "taken-id": "A client sends a record under an id that another's record has",
    "unapplied-message": "A message gives a visit another status and was not applied",
    "subscription-error": "A Subscription is in error, or its endpoint is gone: its practice hears nothing",
    "unconfirmed-endpoint": "Practices have Endpoints that nobody stands for: nothing is sent there",
    "unknown-patient": "The record is about a patient who is not known here",
    "unmatched": "It could not be decided whom an event concerns",
    "unsuitable-consent": "A consent cannot be understood",
    "work-given-up": "Something that the server had to do was given up",
}
# What put it into question whether a member should be enrolled again (Task.reasonCode).
REVIEW_CAUSE = CODE_SYSTEM + "review-cause"
REVIEW_CAUSES = {
    "admitted": "A stay in hospital or in a nursing facility has begun",
    "discharged": "A stay in hospital or in a nursing facility has ended",
    "referred": "Somebody has referred the member to case management",
    "risk-risen": "The member's risk has risen",
}
# What was given up, in the identifier of its Task.
DEAD_LETTER = BASE + "NamingSystem/dead-letter"

# The trigger codings of our topics that have none of HL7's, by topic; the code system of each is named like the topic.
# Those on care plans are CARE_PLAN_CHANGES and CARE_PLAN_REVIEWS.
TOPIC_TRIGGERS = {
    "careteam-change": {
        "participant-added": "Somebody has joined the team",
        "participant-removed": "Somebody has left the team",
        "participant-ended": "Somebody was given an end in the team",
    },
    "case-management-status": {
        "planned": "An enrolment is planned or waits",
        "started": "Case management has begun",
        "held": "Case management pauses",
        "resumed": "Case management goes on",
        "ended": "Case management has ended",
        "retracted": "The enrolment was entered in error",
    },
    "condition-new": {
        "recorded": "A condition was recorded",
        "confirmed": "A recorded condition was confirmed",
    },
    "letter": {"written": "A letter is ready to be sent"},
    "referral": {
        "requested": "A request was made",
        "request-status": "A request has another status",
        "task-given": "A request was given to somebody",
        "task-status": "The task of a request has another status",
    },
}

# The classes of an Encounter that are inpatient ones, and the slugs of the topics of admissions.
INPATIENT = ("IMP", "ACUTE", "NONAC", "SS")
ADMISSION, SNF_ADMISSION = "encounter-admission", "encounter-snf-admission"
