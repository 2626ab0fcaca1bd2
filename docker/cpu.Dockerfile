# torchrl_flow on CPUs. From the root of the repository:
#
#   docker build -f docker/cpu.Dockerfile -t torchrl-flow:cpu .
#   docker run --rm -v "$PWD/runs:/work/runs" torchrl-flow:cpu run shortcut_flow_bc --task planar
#
# TORCH_INDEX_URL names another index for torch alone, such as PyTorch's own of builds without CUDA, which are
# gigabytes smaller. EXTRAS are those of pyproject.toml; `maniskill` needs what the GPU image installs.
FROM python:3.11-slim

ARG EXTRAS=plot
ARG TORCH_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 MPLBACKEND=Agg

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
