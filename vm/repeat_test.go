package vm_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"hash"
	"hash/maphash"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/internal/debian"
	"github.com/vmkit-go/vmkit/internal/guest"
	"github.com/vmkit-go/vmkit/vcpu/soft"
	"github.com/vmkit-go/vmkit/vm"
	"github.com/vmkit-go/vmkit/vm/boot"
	"github.com/vmkit-go/vmkit/vm/virtio"
)

// repeatInit is the init of a guest that works on a disk, with several
// processes, timers, floating point and random numbers, and tells of it on the
// virtio console.
const repeatInit = `#!/bin/busybox sh
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
while read -r m; do insmod "/vmkit/$m"; done </vmkit/modules
until [ -b /dev/vda ] && [ -c /dev/hvc0 ]; do usleep 1000; done
exec >/dev/hvc0 2>&1
mkdir /mnt; mount -t ext4 -o discard /dev/vda /mnt || exit
cd /mnt
for i in 1 2 3 4; do
	(dd if=/dev/urandom of=f$i bs=10000 count=$i conv=fsync 2>/dev/null
	sha256sum f$i; gzip -k f$i; gunzip -c f$i.gz | cmp - f$i && echo "f$i is whole") &
	usleep 3000
done
wait
dd if=/dev/hwrng bs=64 count=1 2>/dev/null | sha256sum
awk 'BEGIN { for (i = 1; i < 2000; i++) s += 1 / i / (i + 0.5); printf "%.17g\n", s; srand(); print rand() }'
seq 3000 | sort -r | md5sum
for i in 1 2 3 4; do (usleep ${i}0000; echo $i) & done; wait
rm f2 f3.gz; fstrim /mnt
cat /proc/interrupts /proc/uptime /proc/stat
cat /proc/loadavg; date
cd /; umount /mnt && echo unmounted
poweroff -f
`

// trail is what a run leaves: a hash of everything every so many instructions,
// and the end.
type trail struct {
	Hashes []string // the last one at the end
	Counts []uint64 // of instructions
	Output string
}

// repeater makes the same machine as often as needed.
type repeater struct {
	kernel []byte
	initrd []byte
	image  []byte
	hash   func() hash.Hash
	until  uint64 // run for so many instructions, if not 0
}

func newRepeater(t *testing.T) *repeater {
	t.Helper()
	k, err := debian.FetchKernel(t.Context(), os.Stderr)
	require.NoError(t, err)
	seed := maphash.MakeSeed()
	r := &repeater{hash: func() hash.Hash {
		h := new(maphash.Hash)
		h.SetSeed(seed)
		return h
	}}
	r.kernel, err = os.ReadFile(k.Image)
	require.NoError(t, err)
	r.initrd, err = guest.Initramfs(t.Context(), guest.Config{
		Kernel:  k,
		Modules: []string{"virtio_pci", "virtio_mmio", "virtio_blk", "virtio_console", "virtio_rng"},
		Files:   map[string]guest.File{"init": {Mode: 0o755, Data: []byte(repeatInit)}},
	})
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "image")
	makeExt4(t, path, 16<<20)
	r.image, err = os.ReadFile(path)
	require.NoError(t, err)
	return r
}

// run runs the machine to its end, or as far as r.until says. meanwhile is called with it, if not nil,
// and may disturb it as it likes until done is closed.
func (r *repeater) run(t *testing.T, cpus int, every uint64, meanwhile func(m *vm.Machine, done <-chan struct{})) trail {
	t.Helper()
	image, err := disk.NewMemory("repeat", int64(len(r.image)))
	require.NoError(t, err)
	defer image.Close()
	_, err = image.WriteAt(r.image, 0)
	require.NoError(t, err)
	// A backend with nothing optional is one that a worker would serve.
	blk, err := disk.NewDevice(struct{ disk.Backend }{image}, disk.Config{Queues: cpus})
	require.NoError(t, err)
	rng, err := virtio.NewRNG(virtio.RNGConfig{Source: rand.NewChaCha8([32]byte{1})})
	require.NoError(t, err)
	said, serial := new(console), new(console)
	hvc, err := virtio.NewConsole(virtio.ConsoleConfig{Out: said})
	require.NoError(t, err)
	m, err := vm.New(vm.Config{
		CPUs: cpus, Memory: 128 << 20, Engine: vm.EngineSoft, StartTime: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
		Boot: boot.Linux{
			Kernel: bytes.NewReader(r.kernel), Initrd: bytes.NewReader(r.initrd), Cmdline: "console=ttyS0 panic=-1 quiet",
		},
		Serial:  vm.Serial{Out: serial},
		Devices: []virtio.Device{blk, hvc, rng},
	})
	require.NoError(t, err)
	defer m.Close()

	var tr trail
	eng := vm.EngineOf(m).(*soft.Engine)
	look := func() {
		h := r.hash()
		if err := sum(h, m, image); err != nil {
			t.Errorf("after %d instructions: %v", eng.Instructions(), err)
		}
		tr.Hashes = append(tr.Hashes, fmt.Sprintf("%x", h.Sum(nil)))
		tr.Counts = append(tr.Counts, eng.Instructions())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	var mark func()
	mark = func() {
		look()
		if r.until != 0 && eng.Instructions() >= r.until {
			cancel()
			return
		}
		eng.At(eng.Instructions()+every, mark)
	}
	eng.At(every, mark)
	ended, left := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(left)
		if meanwhile != nil {
			meanwhile(m, ended)
		}
	}()
	err = m.Run(ctx)
	close(ended)
	<-left
	if r.until != 0 {
		require.ErrorIs(t, err, context.Canceled, "%s\n%s", serial, said)
		return tr
	}
	require.NoError(t, err, "%s\n%s", serial, said)
	look()
	require.NoError(t, m.Close()) // what the guest said has arrived
	tr.Output = serial.String() + said.String()
	require.Contains(t, tr.Output, "unmounted")
	require.Equal(t, 4, strings.Count(tr.Output, "is whole"), "%s", tr.Output)
	return tr
}

// sum hashes all that a machine is.
func sum(h hash.Hash, m *vm.Machine, image disk.Backend) error {
	states, err := vm.StatesOf(m)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(h).Encode(states); err != nil {
		return err
	}
	chips, err := vm.EngineOf(m).SaveChips()
	if err != nil {
		return err
	}
	if err := json.NewEncoder(h).Encode(chips); err != nil {
		return err
	}
	for _, region := range m.Memory().Regions() {
		host, err := m.Memory().AppendSlices(nil, region.Base, region.Size)
		if err != nil {
			return err
		}
		for _, p := range host {
			h.Write(p)
		}
	}
	_, err = io.Copy(h, io.NewSectionReader(image, 0, image.Size()))
	return err
}

// TestRepeat: two runs of a Linux guest are the same, bit for bit, at every
// look and at the end, however busy the host is, however often the runtime
// collects garbage, on however many processors, and however often the machine
// is paused.
func TestRepeat(t *testing.T) {
	needSoft(t)
	if os.Getenv("VMKIT_NESTED") == "1" {
		t.Skip("the engine in software needs no KVM: it is tested on the host around this one")
	}
	r := newRepeater(t)
	const every = 50_000_000
	for _, cpus := range []int{1, 2, 4} {
		t.Run(fmt.Sprintf("%d CPUs", cpus), func(t *testing.T) {
			first := r.run(t, cpus, every, nil)
			t.Logf("%d instructions, %d looks", first.Counts[len(first.Counts)-1], len(first.Hashes))
			second := r.run(t, cpus, every, disturb)
			requireSame(t, first, second)
		})
	}
}

// requireSame compares two runs.
func requireSame(t *testing.T, first, second trail) {
	t.Helper()
	require.Equal(t, first.Output, second.Output)
	for i := range min(len(first.Hashes), len(second.Hashes)) {
		require.Equal(t, first.Counts[i], second.Counts[i], "look %d came at another instruction", i)
		require.Equal(t, first.Hashes[i], second.Hashes[i], "they differ after %d instructions", first.Counts[i])
	}
	require.Equal(t, len(first.Hashes), len(second.Hashes))
}

// disturb makes the host of m busy, collects garbage all the time, changes the
// number of processors and pauses m now and then.
func disturb(m *vm.Machine, done <-chan struct{}) {
	defer debug.SetGCPercent(debug.SetGCPercent(10))
	procs := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(procs)
	for range 2 {
		go func() {
			var waste [][]byte
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				if waste = append(waste, make([]byte, 10_000)); len(waste) > 100 {
					waste = nil
				}
			}
		}()
	}
	for n := 1; ; n++ {
		select {
		case <-done:
			return
		case <-time.After(time.Duration(100+n%7*30) * time.Millisecond):
		}
		runtime.GOMAXPROCS(1 + n%5)
		if m.Pause() != nil {
			return
		}
		if n%5 == 0 && m.Save(io.Discard) != nil {
			return
		}
		// Once the guest has ended there is nothing to resume.
		if m.Resume() != nil {
			return
		}
	}
}
