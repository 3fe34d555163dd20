FROM python:3.11-slim AS build
COPY --from=ghcr.io/astral-sh/uv:0.13.9 /uv /usr/local/bin/uv
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
WORKDIR /srv
# The dependencies change less often than the code: a layer of their own.
COPY pyproject.toml uv.lock ./
RUN uv sync --frozen --no-dev --extra pdf --no-install-project
COPY README.md LICENSE ./
COPY app app
COPY profiles profiles
COPY examples examples
RUN uv sync --frozen --no-dev --extra pdf --no-editable

FROM python:3.11-slim
RUN useradd --system --uid 10001 --no-create-home carerelay \
    && install -d -o carerelay -m 700 /var/lib/carerelay
COPY --from=build /srv/.venv /srv/.venv
# Where the secret key is made, unless a setting names one.
ENV PATH=/srv/.venv/bin:$PATH PYTHONUNBUFFERED=1 XDG_CONFIG_HOME=/var/lib/carerelay XDG_STATE_HOME=/var/lib/carerelay
WORKDIR /srv
USER carerelay
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
# The image has no database of its own: CARERELAY_MONGODB_URI names a replica set.
CMD ["carerelay", "serve", "--host", "0.0.0.0", "--port", "8080"]
