# One image for every process of the product; which one runs is the command: `nigredo run NAME`.
# The embedded parts (Kafka, registry, PostgreSQL) are not needed in it, but they are locked dependencies of one
# environment: what runs here is what was tested.
FROM python:3.13-slim AS build
WORKDIR /app
RUN python -m venv /app/.venv
COPY requirements.lock ./
RUN /app/.venv/bin/python -m pip install --quiet --require-hashes --requirement requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY schemas schemas
COPY nigredo nigredo
COPY ingest ingest
COPY processors processors
COPY sinks sinks
RUN /app/.venv/bin/python -m pip install --quiet --no-build-isolation --no-deps .

FROM python:3.13-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/nigredo --create-home nigredo \
    && install --directory --owner nigredo /var/lib/nigredo/state
COPY --from=build /app/.venv /app/.venv
ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1 NIGREDO_STATE_DIR=/var/lib/nigredo/state
USER nigredo
ENTRYPOINT ["nigredo"]
CMD ["--help"]
