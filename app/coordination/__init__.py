"""The features of care coordination: each folder is one, holds its reactions and timers, and knows no other.

care_plans/         tells the practice of care plans: copies, changes, the yearly review
case_management/    asks about enrolments, health risk assessments and letters
continuity/         honours a new member's earlier plan of care
contracts/          keeps what is owed to states and plans, with deadlines
practices/          keeps Subscriptions for practices' Endpoints, and asks people what is wrong with a visit
workbench/          answers who of a population needs something, and how often members are in hospital

A new feature is a folder here and a line in app/features.py.
"""
