# The command `lite3r` in an image, for a CPU or, with EXTRAS=cuda13 (or cuda12), an NVIDIA GPU:
#   docker build -t lite3r .
#   docker run --rm -v "$PWD:/data" lite3r reconstruct photos --output results
#   docker build -t lite3r:cuda --build-arg EXTRAS=cuda13,video,heic,lens .
#   docker run --rm --gpus all -v "$PWD:/data" lite3r:cuda reconstruct photos --output results
# The wheels of jax bring CUDA's libraries; the host needs the driver and the NVIDIA Container Toolkit.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY lite3r_jax lite3r_jax
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim
ARG EXTRAS=video,heic,lens,viewer,serve
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir "$(echo /wheels/*.whl)[${EXTRAS}]" && rm -r /wheels
# Files in /data belong to who runs the container: docker run --user "$(id -u):$(id -g)" ...
ENV HOME=/cache PYTHONUNBUFFERED=1
RUN mkdir -p /cache /data && chmod 777 /cache /data
VOLUME /cache
WORKDIR /data
USER 1000:1000
ENTRYPOINT ["lite3r"]
CMD ["--help"]
