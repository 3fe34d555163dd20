"""The types of search parameters, one file each, all of the same few pure functions.

`VALUES` gives what is stored for a data type, and `condition` reads search values into a Condition, which knows its
MongoDB `filter()` and whether it `matches(fields)` in memory. One table of cases (tests/search/search_table.py) runs
through both.

token        codes and identifiers, stored as terms
reference    references, stored as terms
string       text, stored as terms
uri          URIs and canonicals, stored as terms
date         dates and periods, stored as ranges
number       numbers, stored as ranges
quantity     quantities and money, stored as ranges
composite    values that one element must have together
special      `_id`, and those of type special
near         `Location.near`: places within a distance
"""
