"""`carerelay load`: Bundles, NDJSON and single resources into any FHIR server.

load      sends entries side by side and reports what became of each
plan      turns a file into single requests whose references fit, and puts right what is not quite R4
report    shows progress and the outcome on the terminal
"""
