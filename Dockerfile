# The agent and the model server for x86-64 gateways and PCs.
#
#   docker buildx build --platform linux/amd64 -f Dockerfile -t edgeserve:amd64 .
#   docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --network host \
#     -v edgeserve:/var/lib/edgeserve -v ./agent.toml:/etc/edgeserve/agent.toml:ro edgeserve:amd64
#   docker run --read-only --tmpfs /tmp --network host -v ./models:/models:ro edgeserve:amd64 serve /models
#
# docs/images.md has the rest: what is in it, other extras, networks that need a certificate or an index of their own.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm
ARG BUILDER_IMAGE=${PYTHON_IMAGE}

# The native stage: wheels for the device are unpacked, nothing is emulated.
FROM --platform=$BUILDPLATFORM ${BUILDER_IMAGE} AS packages
ARG EXTRAS=agent
WORKDIR /src
# A layer of its own for what others wrote: a new release of ours then is a small download.
COPY pyproject.toml agent/image/install.sh ./
RUN --mount=type=secret,id=ca --mount=type=secret,id=pip sh install.sh dependencies x86_64 "$EXTRAS" /dependencies
COPY . .
RUN sh install.sh project /project && mkdir /state

# Only copies: no step runs on the device's processor, and no compiler comes in.
FROM --platform=linux/amd64 ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="edgeserve" \
      org.opencontainers.image.description="Device agent and model server" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/edgeserve/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONPATH=/opt/edgeserve PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    OPENBLAS_NUM_THREADS=1 ORT_DISABLE_TELEMETRY=1
COPY --from=packages --chown=10001:10001 /state /var/lib/edgeserve
COPY --from=packages /dependencies /opt/edgeserve
COPY --from=packages /project /opt/edgeserve
USER 10001:10001
VOLUME ["/var/lib/edgeserve"]
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 CMD ["edgeserve-health"]
ENTRYPOINT ["edgeserve"]
CMD ["agent", "run", "--config", "/etc/edgeserve/agent.toml"]
