"""Continuity of care: for 90 days a new member's earlier plan of care is honoured.

continuity         keeps the Flag and the Task of a member
continuity_days    computes the days from Coverages and CarePlans

docs/case-management.md
"""
