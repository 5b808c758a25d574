package turns

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// usage is what the threads of a process have used so far, by their IDs.
type usage map[string]threadUsage

type threadUsage struct {
	name     string
	ns       uint64 // on a CPU
	kernel   uint64 // 1/100 s of that in the kernel
	guest    uint64 // and in the guest
	wait     uint64 // ns, ready but not on a CPU
	switches uint64 // waits
	forced   uint64 // switches to another thread that were not its wish
}

// takeUsage reads it from /proc. Threads that end meanwhile are left out.
func takeUsage(pid int) usage {
	u := usage{}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	for _, t := range tasks {
		var v threadUsage
		b, err := os.ReadFile(t + "/schedstat")
		if err != nil {
			continue
		}
		_, _ = fmt.Sscan(string(b), &v.ns, &v.wait)
		b, _ = os.ReadFile(t + "/stat")
		if i := strings.LastIndex(string(b), ")"); i > 0 {
			if f := strings.Fields(string(b[i:])); len(f) > 41 {
				_, _ = fmt.Sscan(f[13], &v.kernel)
				_, _ = fmt.Sscan(f[41], &v.guest)
			}
		}
		b, _ = os.ReadFile(t + "/status")
		for _, l := range strings.Split(string(b), "\n") {
			name, value, _ := strings.Cut(l, ":")
			value = strings.TrimSpace(value)
			switch name {
			case "Name":
				v.name = value
			case "voluntary_ctxt_switches":
				_, _ = fmt.Sscan(value, &v.switches)
			case "nonvoluntary_ctxt_switches":
				_, _ = fmt.Sscan(value, &v.forced)
			}
		}
		u[filepath.Base(t)] = v
	}
	return u
}

// print writes what was used since before.
func (u usage) print(w io.Writer, before usage) {
	var ids []string
	for id := range u {
		ids = append(ids, id)
	}
	sort.Strings(ids)
	for _, id := range ids {
		v, b := u[id], before[id]
		if v.ns == b.ns {
			continue
		}
		fmt.Fprintf(w, "  thread %s %-16s %6.1f ms on a CPU, %4d in the kernel, %4d in the guest, %6.1f ms ready, %6d waits, %5d times pushed away\n",
			id, v.name, float64(v.ns-b.ns)/1e6, 10*(v.kernel-b.kernel), 10*(v.guest-b.guest), float64(v.wait-b.wait)/1e6, v.switches-b.switches, v.forced-b.forced)
	}
}
