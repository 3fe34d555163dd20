"""The workbench of who answers for members: whom somebody has to see to, and how often members are in hospital.

population           finds the members that a question is about, as far as the caller sees them
member_findings      are what questions are asked about and what they find
questions            lists the questions
unattended           answers who has no PCP or care plan, an old plan, or opted out
assessments          answers whose health risk assessment is late
hospital             answers who is in hospital, was admitted again, or was not seen after a discharge
member_stays         reads stays and visits
utilization_counts   counts admissions, readmissions and emergency visits
people               finds what people call members
detected_issues      shows findings as DetectedIssues and as CSV
practice_panels      lists the members of each practice with the reason
utilization_report   shows the counts as a MeasureReport and as CSV

docs/workbench.md
"""
