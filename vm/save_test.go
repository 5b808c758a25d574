package vm_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/vm"
	"github.com/vmkit-go/vmkit/vm/virtio"
)

// counting is a guest that counts in R8 and writes it to 0x9000, until the
// byte at 0x9008 is set.
func counting() flat {
	code := []byte{
		0x49, 0xff, 0xc0, // 1: inc r8
		0x4c, 0x89, 0x04, 0x25, 0x00, 0x90, 0, 0, // mov [0x9000], r8
		0x80, 0x3c, 0x25, 0x08, 0x90, 0, 0, 0, // cmp byte [0x9008], 0
		0x74, 0xeb, // je 1b
	}
	return flat{code: append(code, out16(0x604, 1<<13|5<<10)...)}
}

// rngConfig is a machine with one device.
func rngConfig(t testing.TB, engine string, cpus int) vm.Config {
	rng, err := virtio.NewRNG(virtio.RNGConfig{})
	require.NoError(t, err)
	return vm.Config{Engine: engine, CPUs: cpus, Memory: 16 << 20, Devices: []virtio.Device{rng}}
}

// saved returns a saved counting machine and its count.
func saved(t *testing.T, engine string, cpus int) ([]byte, uint64) {
	cfg := rngConfig(t, engine, cpus)
	cfg.Boot = counting()
	m, err := vm.New(cfg)
	require.NoError(t, err)
	defer m.Close()
	runUntil(t, m, func() bool { return count(t, m) > 0 })
	var out bytes.Buffer
	require.NoError(t, m.Save(&out))
	return out.Bytes(), count(t, m)
}

// count is how far the counting guest is.
func count(t testing.TB, m *vm.Machine) uint64 {
	n, err := m.Memory().Uint64(0x9000)
	require.NoError(t, err)
	return n
}

func TestSaveLoad(t *testing.T) { onEngines(t, testSaveLoad) }

func testSaveLoad(t *testing.T, engine string) {
	for _, cpus := range []int{1, 2} {
		stream, before := saved(t, engine, cpus)
		m, err := vm.Load(rngConfig(t, engine, cpus), bytes.NewReader(stream))
		require.NoError(t, err)
		require.Equal(t, before, count(t, m))

		// Saving what was just loaded changes nothing but the clock.
		var again bytes.Buffer
		require.NoError(t, m.Save(&again))
		require.InDelta(t, len(stream), again.Len(), 64)

		runUntil(t, m, func() bool { return count(t, m) > before })
		require.NoError(t, m.Memory().PutUint8(0x9008, 1))
		require.NoError(t, m.Run(t.Context()))
		require.NoError(t, m.Close())
	}
}

func TestSaveWhileRunning(t *testing.T) { onEngines(t, testSaveWhileRunning) }

func testSaveWhileRunning(t *testing.T, engine string) {
	cfg := rngConfig(t, engine, 2)
	cfg.Boot = counting()
	m, err := vm.New(cfg)
	require.NoError(t, err)
	defer m.Close()
	done := make(chan error, 1)
	go func() { done <- m.Run(t.Context()) }()
	name := filepath.Join(t.TempDir(), "machine")
	for range 3 {
		require.NoError(t, m.SaveFile(name))
	}
	require.NoError(t, m.Memory().PutUint8(0x9008, 1))
	require.NoError(t, <-done)
	l, err := vm.LoadFile(rngConfig(t, engine, 2), name)
	require.NoError(t, err)
	require.NoError(t, l.Close())

	require.ErrorIs(t, m.Save(failingWriter{}), errFull)
	require.ErrorContains(t, m.SaveFile(filepath.Join(t.TempDir(), "no", "such")), "no such file")
}

var errFull = errors.New("disk full")

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errFull }

// Whatever is wrong with a stream is one error that wraps ErrBadState, and
// nothing of the machine stays behind.
func TestLoadDamaged(t *testing.T) { onEngines(t, testLoadDamaged) }

func testLoadDamaged(t *testing.T, engine string) {
	stream, _ := saved(t, engine, 1)
	load := func(cfg vm.Config, b []byte) error {
		m, err := vm.Load(cfg, bytes.NewReader(b))
		if err == nil {
			m.Close()
		}
		return err
	}
	fds := openFiles(t)
	for _, n := range []int{0, 5, 16, 20, 30, 200, len(stream) / 2, len(stream) - 21, len(stream) - 1} {
		require.ErrorIs(t, load(rngConfig(t, engine, 1), stream[:n]), vm.ErrBadState, "cut to %d", n)
	}
	for _, at := range []int{0, 16, 20, 24, 40, len(stream) / 3, len(stream) - 3} {
		bad := bytes.Clone(stream)
		bad[at] ^= 0x40
		require.ErrorIs(t, load(rngConfig(t, engine, 1), bad), vm.ErrBadState, "flipped at %d", at)
	}
	require.ErrorContains(t, load(rngConfig(t, engine, 2), stream), "CPUs")
	cfg := rngConfig(t, engine, 1)
	cfg.Memory *= 2
	require.ErrorContains(t, load(cfg, stream), "memory")
	cfg = rngConfig(t, engine, 1)
	cfg.Transport = vm.MMIO
	require.ErrorContains(t, load(cfg, stream), "transport")
	cfg = rngConfig(t, engine, 1)
	cfg.Devices = append(cfg.Devices, rngConfig(t, engine, 1).Devices...)
	require.ErrorContains(t, load(cfg, stream), "devices")
	require.Equal(t, fds, openFiles(t), "file descriptors leaked")
}

// Every byte of every JSON record altered, with a valid checksum: Load may
// refuse or accept it, but must not panic or leave anything behind.
func TestLoadHostile(t *testing.T) { onEngines(t, testLoadHostile) }

func testLoadHostile(t *testing.T, engine string) {
	stream, _ := saved(t, engine, 1)
	fds := openFiles(t)
	for i := range 100 {
		bad := bytes.Clone(stream)
		mutate(bad, uint32(i)*2654435761)
		m, err := vm.Load(rngConfig(t, engine, 1), bytes.NewReader(bad))
		if err != nil {
			continue
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		_ = m.Run(ctx)
		cancel()
		require.NoError(t, m.Close())
	}
	require.Equal(t, fds, openFiles(t), "file descriptors leaked")
}

// A section that is there twice, that nothing takes, or that is not there.
func TestLoadSections(t *testing.T) { onEngines(t, testLoadSections) }

func testLoadSections(t *testing.T, engine string) {
	stream, _ := saved(t, engine, 1)
	for want, change := range map[string]func(sections [][]byte) [][]byte{
		"is there twice": func(s [][]byte) [][]byte { return append(s, s[1]) },
		"belongs to nothing in this machine": func(s [][]byte) [][]byte {
			return append(s, []byte(`{"name":"cpu1","state":{"version":1,"data":{}}}`))
		},
		"data after the end": func(s [][]byte) [][]byte {
			return append(s[1:], slices.Concat(s[0], []byte(" {}")))
		},
		"is missing": func(s [][]byte) [][]byte { return s[:len(s)-1] },
	} {
		m, err := vm.Load(rngConfig(t, engine, 1), bytes.NewReader(withSections(stream, change)))
		require.ErrorIs(t, err, vm.ErrBadState)
		require.ErrorContains(t, err, want)
		require.Nil(t, m)
	}
	m, err := vm.Load(rngConfig(t, engine, 1), bytes.NewReader(withSections(stream, func(s [][]byte) [][]byte { return s })))
	require.NoError(t, err)
	require.NoError(t, m.Close())
}

// withSections is stream with other sections.
func withSections(stream []byte, change func([][]byte) [][]byte) []byte {
	var sections [][]byte
	records := [][]byte{}
	types := []uint32{}
	for rest := stream[16:]; len(rest) >= 12; {
		typ, n := binary.LittleEndian.Uint32(rest), binary.LittleEndian.Uint32(rest[4:])
		data := rest[8:][:n]
		if rest = rest[12+n:]; typ == 2 {
			sections = append(sections, data)
			continue
		}
		types, records = append(types, typ), append(records, data)
	}
	out := bytes.Clone(stream[:16])
	count := uint64(0)
	put := func(typ uint32, data []byte) {
		record := binary.LittleEndian.AppendUint32(nil, typ)
		record = append(binary.LittleEndian.AppendUint32(record, uint32(len(data))), data...)
		out = append(out, binary.LittleEndian.AppendUint32(record, crc32.Checksum(record, crc32.MakeTable(crc32.Castagnoli)))...)
		count++
	}
	for i, typ := range types {
		if typ == 4 { // the end
			put(typ, binary.LittleEndian.AppendUint64(nil, count))
			continue
		}
		put(typ, records[i])
		if typ == 1 { // the header
			for _, s := range change(sections) {
				put(2, s)
			}
		}
	}
	return out
}

// mutate changes a byte in one record that is not pages, and mends its sum.
func mutate(b []byte, seed uint32) {
	var records [][]byte
	for rest := b[16:]; len(rest) >= 12; {
		n := 8 + int(binary.LittleEndian.Uint32(rest[4:]))
		if binary.LittleEndian.Uint32(rest) <= 2 {
			records = append(records, rest[:n+4])
		}
		rest = rest[n+4:]
	}
	r := records[seed%uint32(len(records))]
	at := 8 + int(seed>>8)%(len(r)-12)
	const alphabet = `0123456789{}[]",: -`
	r[at] = alphabet[seed>>3%uint32(len(alphabet))]
	sum := crc32.Checksum(r[:len(r)-4], crc32.MakeTable(crc32.Castagnoli))
	binary.LittleEndian.PutUint32(r[len(r)-4:], sum)
}

// openFiles counts this process's file descriptors.
func openFiles(t testing.TB) int {
	d, err := os.Open("/proc/self/fd")
	require.NoError(t, err)
	defer d.Close()
	names, err := d.Readdirnames(-1)
	require.True(t, err == nil || err == io.EOF)
	return len(names)
}
