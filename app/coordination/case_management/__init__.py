"""Case management: who may need it again, what falls due, and who is written to.

case_management             asks a person whether a member should be enrolled again
case_management_triggers    recognizes transitions of care, risks that have risen, and referrals
participation               reads the member's last word on taking part
opt_outs                    asks a person to end the enrolment of who has said no
referral_answers            writes to who has referred a patient where that is not taken up
health_risk_assessments     keeps the Tasks of health risk assessments that fall due
letters                     writes the letters of an opt-in to member and practice
letter_writing              stores a letter, and asks whether its recipient may hear of it
letters_waiting             addresses a letter once a practice is known
letters_sent                completes a letter that a practice took by its Subscription

docs/case-management.md
"""
