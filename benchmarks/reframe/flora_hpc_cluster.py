"""ReFrame: the cluster benchmark of flora_hpc. A result is sane when it is VALID; its figures become performance variables.

reframe -C <your site.py> -c benchmarks/reframe/flora_hpc_cluster.py -r -S num_nodes=4 -S bench_class=M
"""

import reframe as rfm
import reframe.utility.sanity as sn
from reframe.core.builtins import performance_function, run_after, run_before, sanity_function, variable

FIGURE = r"^FOM {} = (\S+)"


@rfm.simple_test
class FloraHpcCluster(rfm.RunOnlyRegressionTest):
    """One class on `num_nodes` nodes, curve and proof included."""

    descr = "Client updates per second of flora_hpc"
    valid_systems = ["*"]  # noqa: RUF012 -- as ReFrame has it
    valid_prog_environs = ["*"]  # noqa: RUF012
    bench_class = variable(str, value="T")
    num_nodes = variable(int, value=1)
    ranks_per_node = variable(int, value=1)
    scaling = variable(str, value="strong")
    fraction = variable(float, value=1.0)
    program = variable(str, value="flora-hpc")
    time_limit = "1h"

    @run_after("init")
    def name_the_program(self):
        """Ranks and command line."""
        self.executable = self.program
        self.num_tasks = self.num_nodes * self.ranks_per_node
        self.num_tasks_per_node = self.ranks_per_node
        words = f"bench cluster --class {self.bench_class} --{self.scaling} --fraction {self.fraction} --out result --fom"
        self.executable_opts = words.split()

    @run_before("run")
    def keep_the_result(self):
        """What to hand over stays beside ReFrame's output."""
        self.keep_files = ["result/result.json", "result/cluster.html", "result/run.h5"]

    @sanity_function
    def is_valid(self):
        """The benchmark's own proof: digests, accuracy, nobody rejected."""
        return sn.assert_found(r"^FOM valid = VALID", self.stdout)

    @performance_function("1/s")
    def client_updates_per_second(self):
        """The number."""
        return sn.extractsingle(FIGURE.format("client_updates_per_second"), self.stdout, 1, float)

    @performance_function("s")
    def round_seconds(self):
        """Median of the rounds on all nodes."""
        return sn.extractsingle(FIGURE.format("round_seconds"), self.stdout, 1, float)

    @performance_function("1")
    def efficiency(self):
        """Of the largest size, against the smallest."""
        return sn.extractsingle(FIGURE.format("efficiency"), self.stdout, 1, float)
