package vm

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/vmkit-go/vmkit/internal/durable"
	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vm/device"
)

// savedHeader says what machine a stream was made by. A machine that loads it
// must be built alike.
type savedHeader struct {
	CPUs      int        `json:"cpus"`
	Memory    uint64     `json:"memory"`
	Transport string     `json:"transport"`
	Devices   []string   `json:"devices"`
	CPUID     vcpu.CPUID `json:"cpuid"`
}

// savedSection is the state of one part: a device, a CPU, the chips.
type savedSection struct {
	Name  string       `json:"name"`
	State device.State `json:"state"`
}

const (
	cpuStateVersion  = 1
	chipStateVersion = 1
)

// Save writes the whole machine to w: CPUs, chips, devices and memory, but
// not the contents of disks, which were flushed. A running machine is paused
// for as long as it takes and resumed. Pages never touched cost nothing.
func (m *Machine) Save(w io.Writer) error {
	if err := m.saveTo(w); err != nil {
		return fmt.Errorf("vm: save: %w", err)
	}
	return nil
}

// SaveFile saves to a file that appears under its name only when it is whole
// and durable.
func (m *Machine) SaveFile(name string) error {
	if err := durable.Replace(name, 0o600, m.saveTo); err != nil {
		return fmt.Errorf("vm: save: %w", err)
	}
	return nil
}

func (m *Machine) saveTo(w io.Writer) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	resume := m.pauseLocked()
	err := m.save(w)
	if resume {
		err = errors.Join(err, m.resumeLocked())
	}
	return err
}

func (m *Machine) header() savedHeader {
	h := savedHeader{
		CPUs: m.cfg.CPUs, Memory: m.cfg.Memory, Transport: m.cfg.Transport.String(),
		CPUID: m.engine.CPUID(), Devices: []string{},
	}
	for _, s := range m.slots {
		h.Devices = append(h.Devices, s.name)
	}
	return h
}

func (m *Machine) save(w io.Writer) error {
	rw, err := newRecordWriter(w)
	if err != nil {
		return err
	}
	if err := rw.json(recHeader, m.header()); err != nil {
		return err
	}
	chips, err := m.engine.SaveChips()
	if err != nil {
		return fmt.Errorf("interrupt chips: %w", err)
	}
	if err := writeSection(rw, "chips", chipStateVersion, chips); err != nil {
		return err
	}
	for i := range m.cpus {
		var s vcpu.State
		if err := m.onCPU(i, func(c vcpu.CPU) error { return c.State(&s) }); err != nil {
			return fmt.Errorf("cpu%d: %w", i, err)
		}
		if err := writeSection(rw, fmt.Sprintf("cpu%d", i), cpuStateVersion, &s); err != nil {
			return err
		}
	}
	for _, p := range m.parts {
		s, err := p.dev.Save()
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		if err := rw.json(recSection, savedSection{p.name, s}); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	if err := savePages(rw, m.mem); err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	return rw.end()
}

func writeSection(rw *recordWriter, name string, version int, v any) error {
	s, err := device.EncodeState(version, v)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return rw.json(recSection, savedSection{name, s})
}

// savePages writes the pages of mem that were ever touched and are not all
// zero. The others are skipped unread: reading them would allocate them.
func savePages(rw *recordWriter, mem *memory.Memory) error {
	var (
		touched memory.Bitmap
		host    [][]byte
	)
	if err := mem.CollectTouched(&touched); err != nil {
		return err
	}
	for gpa, n := range touched.Runs() {
		var err error
		if host, err = mem.AppendSlices(host[:0], gpa, n); err != nil {
			return err
		}
		for _, p := range host {
			if err := saveRun(rw, gpa, p); err != nil {
				return fmt.Errorf("at %#x: %w", gpa, err)
			}
			gpa += uint64(len(p))
		}
	}
	return nil
}

// saveRun writes the pages of p, which lie at base, that are not all zero.
func saveRun(rw *recordWriter, base uint64, p []byte) error {
	const chunk = maxPageRecord - 8
	var gpa [8]byte
	for at := 0; at < len(p); {
		n := 0
		for n < chunk && at+n < len(p) && !allZero(p[at+n:at+n+memory.PageSize]) {
			n += memory.PageSize
		}
		if n == 0 {
			at += memory.PageSize
			continue
		}
		binary.LittleEndian.PutUint64(gpa[:], base+uint64(at))
		if err := rw.write(recPages, gpa[:], p[at:at+n]); err != nil {
			return err
		}
		at += n
	}
	return nil
}

func allZero(p []byte) bool {
	for len(p) >= 8 {
		if binary.NativeEndian.Uint64(p) != 0 {
			return false
		}
		p = p[8:]
	}
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// Load makes a machine that goes on where the one whose Save wrote r was. cfg
// must describe the same CPUs, memory, transport and kinds of devices, and the
// disks must hold what they held then. What the engine lacks on this host of what
// the guest was shown, a feature or the TSC's frequency, is an error that wraps
// vcpu.ErrMissing and names it: nothing is lost, and an engine that has it can
// load the same. An error that is the stream's fault wraps ErrBadState. The
// loaded machine is paused: Run runs it.
func Load(cfg Config, r io.Reader) (*Machine, error) {
	m, err := load(cfg, r)
	if errors.Is(err, vcpu.ErrMissing) {
		err = fmt.Errorf("%w (what was saved can be loaded where it was made; a machine made with Portable on this host runs on either engine)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("vm: load: %w", err)
	}
	return m, nil
}

// LoadFile is Load from a file.
func LoadFile(cfg Config, name string) (*Machine, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("vm: load: %w", err), closeDevices(cfg.Devices))
	}
	defer f.Close()
	return Load(cfg, f)
}

func load(cfg Config, r io.Reader) (*Machine, error) {
	rr, err := newRecordReader(r)
	var have savedHeader
	if err == nil {
		have, err = readHeader(rr)
	}
	if err != nil {
		return nil, errors.Join(err, closeDevices(cfg.Devices))
	}
	// The header is only compared after the machine is built, when it can
	// speak for itself; but its CPUID is needed to build it.
	m, err := build(cfg, have.CPUID, nil)
	if err != nil {
		return nil, err
	}
	m.state = statePaused
	if err = m.header().accepts(have); err == nil {
		err = m.loadRecords(rr)
	}
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

func readHeader(rr *recordReader) (h savedHeader, err error) {
	typ, data, err := rr.next()
	if err != nil {
		return h, err
	}
	if typ != recHeader {
		return h, fmt.Errorf("%w: the first record has type %d, not the header's", ErrBadState, typ)
	}
	if err := decodeStrict(data, &h); err != nil {
		return h, fmt.Errorf("header: %w", err)
	}
	if len(h.CPUID) == 0 {
		return h, fmt.Errorf("%w: the header has no CPUID", ErrBadState)
	}
	return h, nil
}

// sections are the names of the sections that the machine takes.
func (m *Machine) sections() map[string]bool {
	names := map[string]bool{"chips": true}
	for i := range m.cpus {
		names[fmt.Sprintf("cpu%d", i)] = true
	}
	for _, p := range m.parts {
		names[p.name] = true
	}
	return names
}

func (m *Machine) loadRecords(rr *recordReader) error {
	wanted := m.sections()
	sections := map[string]device.State{}
	for {
		typ, data, err := rr.next()
		if err != nil {
			return err
		}
		switch typ {
		case recSection:
			var s savedSection
			if err := decodeStrict(data, &s); err != nil {
				return fmt.Errorf("section: %w", err)
			}
			if _, twice := sections[s.Name]; twice {
				return fmt.Errorf("%w: section %q is there twice", ErrBadState, s.Name)
			}
			if !wanted[s.Name] { // nor is any number of them kept
				return fmt.Errorf("%w: section %q belongs to nothing in this machine", ErrBadState, s.Name)
			}
			sections[s.Name] = s.State
		case recPages:
			if len(data) < 8 || len(data)%memory.PageSize != 8 {
				return fmt.Errorf("%w: a page record of %d bytes", ErrBadState, len(data))
			}
			if err := m.mem.Write(binary.LittleEndian.Uint64(data), data[8:]); err != nil {
				return fmt.Errorf("%w: pages: %w", ErrBadState, err)
			}
		case recEnd:
			return m.loadSections(sections)
		default:
			return fmt.Errorf("%w: a second header", ErrBadState)
		}
	}
}

// accepts says why a machine described by h cannot go on with what one
// described by have saved.
func (h savedHeader) accepts(have savedHeader) error {
	differ := func(what string, have, want any) error {
		return fmt.Errorf("%w: it has %s %v, this machine has %v", ErrBadState, what, have, want)
	}
	switch {
	case have.CPUs != h.CPUs:
		return differ("CPUs:", have.CPUs, h.CPUs)
	case have.Memory != h.Memory:
		return differ("bytes of memory:", have.Memory, h.Memory)
	case have.Transport != h.Transport:
		return differ("transport", have.Transport, h.Transport)
	}
	a, _ := json.Marshal(have.Devices)
	b, _ := json.Marshal(h.Devices)
	if string(a) != string(b) {
		return differ("devices", string(a), string(b))
	}
	return nil
}

// loadSections hands every section to its part. The chips come after the
// CPUs, as vcpu.Engine wants it.
func (m *Machine) loadSections(sections map[string]device.State) error {
	take := func(name string) (device.State, error) {
		s, ok := sections[name]
		if !ok {
			return s, fmt.Errorf("%w: section %q is missing", ErrBadState, name)
		}
		return s, nil
	}
	for i := range m.cpus {
		name := fmt.Sprintf("cpu%d", i)
		s, err := take(name)
		if err != nil {
			return err
		}
		var st vcpu.State
		if err := s.Decode(cpuStateVersion, &st); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrBadState, name, err)
		}
		if err := st.Validate(); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrBadState, name, err)
		}
		if err := m.onCPU(i, func(c vcpu.CPU) error { return c.SetState(&st) }); err != nil {
			if errors.Is(err, vcpu.ErrMissing) {
				return fmt.Errorf("%s: %w", name, err)
			}
			return fmt.Errorf("%w: %s: %w", ErrBadState, name, err)
		}
	}
	for _, p := range m.parts {
		s, err := take(p.name)
		if err != nil {
			return err
		}
		if err := p.dev.Load(s); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrBadState, p.name, err)
		}
	}
	s, err := take("chips")
	if err != nil {
		return err
	}
	var chips vcpu.ChipState
	if err := s.Decode(chipStateVersion, &chips); err != nil {
		return fmt.Errorf("%w: chips: %w", ErrBadState, err)
	}
	if err := m.engine.LoadChips(chips); err != nil {
		return fmt.Errorf("%w: chips: %w", ErrBadState, err)
	}
	return nil
}
