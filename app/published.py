"""What the server publishes of itself as ordinary resources: the OperationDefinitions of its operations.

They are stored at start, so that clients find, read and search them like anything else.
"""

from __future__ import annotations

from app import interactions
from app.context import Context
from app.operations import registry


async def store_definitions(context: Context) -> None:
    """Store each definition that is missing or differs; what is there already stays untouched."""
    for definition_id, resource in registry.definitions().items():
        await interactions.update(context, "OperationDefinition", definition_id, resource)
