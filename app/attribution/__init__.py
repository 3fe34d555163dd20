"""Attribution: who is responsible for a patient at a moment, and what Subscriptions can filter by that.

attribution    finds a patient's PCP, source by source
claims         reads what care teams, the patient's record and rosters say about the PCP
practices      resolves a practitioner, role or organization to a whole practice with its Endpoints
many           finds the PCPs of many patients in the same number of reads
unattributed   finds who of very many patients has no PCP
panels         says which roles and organizations are primary care providers, and which Endpoints are theirs
facility       says what kind of facility a stay is in
whereabouts    tells one facility of a stay from another
derived        gives all of this as search terms, for the filters of topics

docs/routing.md
"""
