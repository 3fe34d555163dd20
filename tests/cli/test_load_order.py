"""Many files in one load: what waits for what, what is begun again, and whose ids are whose."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.cli.load.load import load
from app.cli.load.outcome import LoadReport
from tests.builders.bundles import posted, transaction
from tests.conftest import make_settings, running

pytestmark = pytest.mark.mongo
