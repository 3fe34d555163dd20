"""Case management: who may need it again, what falls due, and who is written to.

case_management             asks a person whether a member should be enrolled again
case_management_triggers    recognizes transitions of care, risks that have risen, and referrals
health_risk_assessments     keeps the Tasks of health risk assessments that fall due
letters                     writes the letters of an opt-in to member and practice
letters_sent                completes a letter that a practice took by its Subscription

docs/case-management.md
"""
