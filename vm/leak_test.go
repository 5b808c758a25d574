package vm_test

import (
	"errors"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vm"
	"github.com/vmkit-go/vmkit/vm/boot"
	"github.com/vmkit-go/vmkit/vm/boot/acpi"
	"github.com/vmkit-go/vmkit/vm/virtio"
)

var errStage = errors.New("this stage fails")

// stageDevice counts how often it is closed, and may refuse to be attached.
type stageDevice struct {
	*virtio.RNG
	refuse bool
	closed int
}

func (d *stageDevice) Attach(h *virtio.Host) error {
	if d.refuse {
		return errStage
	}
	return d.RNG.Attach(h)
}

func (d *stageDevice) Close() error {
	d.closed++
	return d.RNG.Close()
}

type failingLoader struct{}

func (failingLoader) Load(*memory.Memory, acpi.Config) (boot.Entry, error) {
	return boot.Entry{}, errStage
}

// held is what a process can leak.
type held struct {
	goroutines, files int
	mapped            uint64 // bytes of address space
}

func holds(t *testing.T) held {
	t.Helper()
	runtime.GC()
	h := held{goroutines: runtime.NumGoroutine(), files: openFiles(t)}
	status, err := os.ReadFile("/proc/self/status")
	require.NoError(t, err)
	for line := range strings.Lines(string(status)) {
		if kb, ok := strings.CutPrefix(line, "VmSize:"); ok {
			n, err := strconv.ParseUint(strings.Fields(kb)[0], 10, 64)
			require.NoError(t, err)
			h.mapped = n << 10
		}
	}
	return h
}

// Wherever New fails, nothing stays behind and every device is closed once.
func TestNewFails(t *testing.T) {
	kvmtest.Open(t)
	const size = 64 << 20
	ok := flat{code: spin}
	for _, tt := range []struct {
		name string
		cfg  vm.Config
		devs int // how many, and which of them refuses
		bad  int
		want string
	}{
		{"nothing to boot", vm.Config{}, 1, -1, "nothing to boot"},
		{"negative CPUs", vm.Config{Boot: ok, CPUs: -1}, 1, -1, "-1 CPUs"},
		{"too many CPUs", vm.Config{Boot: ok, CPUs: vm.MaxCPUs + 1}, 1, -1, "255 CPUs"},
		{"too little memory", vm.Config{Boot: ok, Memory: 4096}, 1, -1, "4096 bytes of memory"},
		{"half a page of memory", vm.Config{Boot: ok, Memory: size + 2048}, 1, -1, "not a multiple"},
		{"more memory than addresses", vm.Config{Boot: ok, Memory: 1 << 60}, 1, -1, "memory"},
		{"unknown transport", vm.Config{Boot: ok, Transport: 7}, 1, -1, "unknown transport 7"},
		{"unknown engine", vm.Config{Boot: ok, Engine: "steam"}, 1, -1, `unknown engine "steam"`},
		{"unknown model", vm.Config{Boot: ok, Model: vcpu.Model(99)}, 1, -1, "model"},
		{"first device on PCI", vm.Config{Boot: ok}, 3, 0, errStage.Error()},
		{"last device on PCI", vm.Config{Boot: ok}, 3, 2, errStage.Error()},
		{"first device on MMIO", vm.Config{Boot: ok, Transport: vm.MMIO}, 3, 0, errStage.Error()},
		{"last device on MMIO", vm.Config{Boot: ok, Transport: vm.MMIO}, 3, 2, errStage.Error()},
		{"too many devices for PCI", vm.Config{Boot: ok}, 40, -1, "no room"},
		{"too many devices for MMIO", vm.Config{Boot: ok, Transport: vm.MMIO}, 40, -1, "no room"},
		{"a loader that fails", vm.Config{Boot: failingLoader{}, CPUs: 2}, 3, -1, errStage.Error()},
		{"a kernel that is none", vm.Config{Boot: boot.Linux{Kernel: strings.NewReader("not a kernel")}}, 3, -1, boot.ErrKernel.Error()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			once := func() {
				cfg := tt.cfg
				if cfg.Memory == 0 {
					cfg.Memory = size
				}
				if cfg.Engine == "" {
					cfg.Engine = vm.EngineKVM
				}
				var devices []*stageDevice
				for i := range tt.devs {
					rng, err := virtio.NewRNG(virtio.RNGConfig{})
					require.NoError(t, err)
					d := &stageDevice{RNG: rng, refuse: i == tt.bad}
					devices = append(devices, d)
					cfg.Devices = append(cfg.Devices, d)
				}
				_, err := vm.New(cfg)
				require.ErrorContains(t, err, tt.want)
				require.NotContains(t, err.Error(), "\n")
				for i, d := range devices {
					require.Equal(t, 1, d.closed, "device %d of %d", i, len(devices))
				}
			}
			once() // what is kept for all machines is there from here on
			before := holds(t)
			for range 4 {
				once()
			}
			// Goroutines end a moment after they are told to. Go's runtime
			// itself may take 64 MiB of address space at any time.
			for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				after := holds(t)
				if after.goroutines <= before.goroutines && after.files == before.files && after.mapped < before.mapped+3*size {
					return
				}
				if time.Now().After(deadline) {
					t.Fatalf("before %+v, after %+v", before, after)
				}
			}
		})
	}
}
