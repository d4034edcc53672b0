# The gateway. EXTRAS=[engine] adds torch and the model code (several GB with CUDA); without it the echo,
# remote (chat) and worker engines run.
#
#   docker build -t moshi-gateway .                              # 0.3 GB of packages, no torch
#   docker build -t moshi-gateway:gpu --build-arg EXTRAS=[engine] .
FROM python:3.12-slim AS build
ARG EXTRAS=""
RUN python -m venv /opt/gateway
COPY . /src
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/gateway/bin/pip install --disable-pip-version-check "/src${EXTRAS}"

FROM python:3.12-slim
RUN useradd --create-home --uid 10001 gateway \
 && mkdir -p /var/cache/gateway && chown gateway /var/cache/gateway
COPY --from=build /opt/gateway /opt/gateway
ENV PATH=/opt/gateway/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/var/cache/gateway \
    HF_HOME=/var/cache/gateway/huggingface \
    MG_LOG__FORMAT=json
USER gateway
WORKDIR /home/gateway
VOLUME /var/cache/gateway
# Phones, browsers, RTP. With --network host (see docker-compose.yml) nothing needs publishing.
EXPOSE 8080/tcp 5060/udp 16384-32766/udp
STOPSIGNAL SIGTERM
# Plain http on the loopback; with http.tls_cert set override it.
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s CMD python -c \
    "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ.get('MG_HTTP__PORT', '8080') + '/health', timeout=2)"
ENTRYPOINT ["moshi-gateway"]
CMD ["serve"]
