# torchrl_flow on NVIDIA GPUs, with ManiSkill. The host needs its driver and the NVIDIA container toolkit. From the root
# of the repository:
#
#   docker build -f docker/gpu.Dockerfile -t torchrl-flow:gpu .
#   docker run --rm --gpus all --shm-size 8g -v "$PWD/runs:/work/runs" torchrl-flow:gpu versions
#
# The wheels of torch bring CUDA's libraries; the driver comes from the host. `graphics` among the capabilities is what
# lets ManiSkill render.
FROM python:3.11-slim

ARG EXTRAS=plot,maniskill
ARG TORCH_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 MPLBACKEND=Agg
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics

# What SAPIEN, the simulator of ManiSkill, loads.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libvulkan1 libx11-6 libgl1 libglib2.0-0 libegl1 libgomp1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/torchrl_flow
COPY pyproject.toml constraints.txt README.md LICENSE ./
# Before the sources, so that a change of theirs does not install torch again.
RUN pip install --constraint constraints.txt ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch
COPY torchrl_flow ./torchrl_flow
COPY examples ./examples
RUN pip install --constraint constraints.txt --editable ".[$EXTRAS]"

RUN useradd --create-home --uid 1000 user && mkdir /work && chown user /work
USER user
WORKDIR /work
ENTRYPOINT ["python", "-m", "torchrl_flow"]
CMD ["--help"]
