"""Contracts with states and plans: whom the server owes notices about a group, and until when.

contract_terms        reads an operator's contract, and owns the rows of contracts
contracts             keeps the Contract resource and the Subscriptions of each contract
contract_parties      sees to it that the Group and the organizations that a contract names are here
contract_deadlines    watches the ledger and asks a person when a deadline is near or missed

docs/contracts.md
"""
