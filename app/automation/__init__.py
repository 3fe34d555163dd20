"""Automation: what the server does of itself, after a commit or when a time has come. No feature is named here.

engine               starts and stops reactions and timers
reactions            hands each committed event to the reactions of its type, at least once
timers               keeps what is to happen later as rows with a time, and runs what is due
set_aside            lets what fails over one of many keep no other from its turn
dead_letter_tasks    asks people about work that was given up, and has it run again
review_tasks         puts a Task into the review queue, once for each matter
borne_labels         gives what is written the security labels of what it is about
follow_up_tasks      keeps Tasks with a day by which something has to be done
work_lists           says in whose work list a Task stands, and whose it is
member_calendar      finds the days of a member's own time zone
patient_resources    reads what is known of one patient, by type and code

app/features.py lists the reactions and timers there are.
"""
