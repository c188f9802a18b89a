# The pipeline on a CPU: docs/sharing.md.
FROM python:3.11-slim
RUN apt-get update \
 && apt-get install --yes --no-install-recommends git make \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /tmv
COPY requirements.txt ./
# The pinned versions of torch and torchvision without CUDA; then every other pin, by its hash, but for CUDA's.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m venv .venv \
 && .venv/bin/pip install --no-cache-dir --no-deps --index-url "$TORCH_INDEX" \
      $(grep --only-matching --extended-regexp '^torch(vision)?==[0-9.]+' requirements.txt) \
 && sed --regexp-extended "/^(torch|torchvision|triton)==|^(cuda|nvidia)-.*'linux'/,/[^\\]$/d" requirements.txt > /tmp/cpu.txt \
 && .venv/bin/pip install --no-cache-dir --no-deps --requirement /tmp/cpu.txt
COPY . .
RUN touch .venv/bin/.installed && make .git
CMD ["make", "repro"]
