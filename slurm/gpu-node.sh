#!/bin/bash
# A run on one node with 4 GPUs: 4 ranks, one for each GPU, 4 cores for each rank.
#
# Submit it with `sbatch THIS-FILE`, from a shell in which flora-hpc starts; what follows the file's name, such as
# `-s rounds=5`, goes to flora-hpc run. Some two minutes before the time limit, or when it is preempted, the run saves a
# checkpoint and ends with code 75; the last lines then put the job back into the queue, and it goes on from there.
# Written by:
#   flora-hpc slurm configs/quickstart.yaml --nodes 1 --gpus-per-node 4 --time 2:00:00 --mpi none

#SBATCH --job-name=quickstart
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=4
#SBATCH --gpus-per-node=4
#SBATCH --time=2:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

# --mpi: pmix for Open MPI, pmi2 for MPICH and Intel MPI, none for torch's NCCL and gloo (comm.backend)
code=0
srun --kill-on-bad-exit=1 --mpi=none --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    flora-hpc run configs/quickstart.yaml --out runs/quickstart --resume \
    -s comm.backend=nccl "$@" || code=$?
if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
