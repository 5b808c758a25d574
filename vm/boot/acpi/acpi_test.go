package acpi

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmkit-go/vmkit/internal/platform"
)

func fullConfig(cpus int) Config {
	c := Config{
		CPUs: cpus, Serial: true, RTC: true, Pvpanic: true,
		PCI: &PCI{ECAM: platform.ECAMBase, Windows: []Window{
			{Base: platform.PCIWindowBase, Size: platform.PCIWindowSize},
			{Base: 1 << 40, Size: 1 << 38, Prefetchable: true},
		}},
	}
	for i := range platform.MaxMMIOSlots {
		gsi, _ := platform.MMIOGSI(i)
		c.MMIO = append(c.MMIO, MMIODevice{Base: platform.MMIOBase + uint64(i)*platform.MMIOSize, Size: platform.MMIOSize, GSI: gsi})
	}
	return c
}

// walk follows RSDP and XSDT through img, as a guest does, and returns every
// table by signature. It fails the test on a bad length or checksum.
func walk(t *testing.T, base uint64, img []byte) map[string][]byte {
	t.Helper()
	at := func(addr uint64) []byte {
		if addr < base || addr-base >= uint64(len(img)) {
			t.Fatalf("address %#x is outside the image", addr)
		}
		return img[addr-base:]
	}
	sized := func(addr uint64) []byte {
		b := at(addr)
		n := le.Uint32(b[4:])
		if n < 8 || uint64(n) > uint64(len(b)) {
			t.Fatalf("table %q at %#x has length %d", b[:4], addr, n)
		}
		return b[:n:n]
	}
	if string(img[:8]) != "RSD PTR " || sum(img[:20]) != 0 || sum(img[:36]) != 0 {
		t.Fatalf("bad RSDP % x", img[:36])
	}
	found := map[string][]byte{}
	check := func(b []byte) {
		if sum(b) != 0 {
			t.Errorf("%s: bad checksum", b[:4])
		}
		found[string(b[:4])] = b
	}
	xsdt := sized(le.Uint64(img[24:]))
	check(xsdt)
	for e := xsdt[36:]; len(e) > 0; e = e[8:] {
		check(sized(le.Uint64(e)))
	}
	facp := found["FACP"]
	if facp == nil {
		t.Fatal("no FADT")
	}
	check(sized(le.Uint64(facp[140:])))
	facs := uint64(le.Uint32(facp[36:]))
	if facs%64 != 0 {
		t.Errorf("FACS at %#x is not aligned", facs)
	}
	found["FACS"] = sized(facs)
	return found
}

func TestBuild(t *testing.T) {
	for _, cpus := range []int{1, 2, 8, 255, 256, 1024} {
		img, err := Build(Base, fullConfig(cpus))
		if err != nil {
			t.Fatal(err)
		}
		tables := walk(t, Base, img)
		for _, s := range []string{"XSDT", "FACP", "FACS", "APIC", "MCFG", "DSDT"} {
			if tables[s] == nil {
				t.Errorf("%d CPUs: no %s", cpus, s)
			}
		}
		ids := map[uint32]bool{}
		for e := tables["APIC"][44:]; len(e) > 0; e = e[e[1]:] {
			switch e[0] {
			case 0:
				ids[uint32(e[3])] = true
			case 9:
				ids[le.Uint32(e[4:])] = true
			}
		}
		for id := range cpus {
			if !ids[uint32(id)] {
				t.Errorf("%d CPUs: APIC ID %d is missing", cpus, id)
			}
		}
		if len(ids) != cpus {
			t.Errorf("%d CPUs: %d APIC IDs", cpus, len(ids))
		}
		again, _ := Build(Base, fullConfig(cpus))
		if !bytes.Equal(img, again) {
			t.Errorf("%d CPUs: two builds differ", cpus)
		}
	}
	img, err := Build(Base, Config{})
	if err != nil {
		t.Fatal(err)
	}
	if tables := walk(t, Base, img); tables["MCFG"] != nil || le.Uint32(tables["APIC"][4:]) != 44+8+12+10+10+6 {
		t.Errorf("the zero configuration is not one CPU without PCI: % x", tables["APIC"])
	}
}

func TestBuildRefuses(t *testing.T) {
	for name, c := range map[string]Config{
		"negative CPUs":      {CPUs: -1},
		"too many CPUs":      {CPUs: MaxCPUs + 1},
		"empty MMIO":         {MMIO: []MMIODevice{{Base: 0xd000_0000}}},
		"high MMIO":          {MMIO: []MMIODevice{{Base: 1 << 32, Size: 4096}}},
		"wrapping MMIO":      {MMIO: []MMIODevice{{Base: 0xd000_0000, Size: 1<<64 - 1}}},
		"no such line":       {MMIO: []MMIODevice{{Base: 0xd000_0000, Size: 4096, GSI: 24}}},
		"unaligned ECAM":     {PCI: &PCI{ECAM: 0xe000_1000}},
		"high ECAM":          {PCI: &PCI{ECAM: 1 << 32}},
		"ECAM past 4 GiB":    {PCI: &PCI{ECAM: 0xfff0_0000, Buses: 2}},
		"too many buses":     {PCI: &PCI{ECAM: 0, Buses: 257}},
		"wrapping window":    {PCI: &PCI{Windows: []Window{{Base: 1 << 63, Size: 1<<63 + 1}}}},
		"more than the area": {MMIO: make([]MMIODevice, 4000), CPUs: MaxCPUs},
	} {
		for i := range c.MMIO {
			if len(c.MMIO) > 1 {
				c.MMIO[i] = MMIODevice{Base: uint64(i) << 12, Size: 4096}
			}
		}
		if img, err := Build(Base, c); !errors.Is(err, ErrConfig) || img != nil {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := Build(Base+1, Config{}); !errors.Is(err, ErrConfig) {
		t.Errorf("unaligned base: got %v", err)
	}
}

// TestIASL has ACPICA's compiler judge the tables: it disassembles each one,
// and the DSDT has to compile again without a remark.
func TestIASL(t *testing.T) {
	iasl, err := exec.LookPath("iasl")
	if err != nil {
		t.Skip("iasl is missing: install Debian's acpica-tools")
	}
	img, err := Build(Base, fullConfig(300))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run := func(args ...string) string {
		cmd := exec.Command(iasl, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("iasl %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	want := map[string][]string{
		"DSDT": {
			`Name (\_S5, Package (0x04)`, "Device (PCI0)", `EisaId ("PNP0A08")`, "WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode",
			"QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite", "Prefetchable, ReadWrite",
			"0x0000013FFFFFFFFF", `EisaId ("PNP0C02")`, `EisaId ("PNP0501")`, "IRQNoFlags ()", `EisaId ("PNP0B00")`, `"QEMU0001"`,
			"Device (V00E)", `"LNRO0005"`, "0xD000E000,", "Interrupt (ResourceConsumer, Level, ActiveHigh, Exclusive",
		},
		"FACP": {"Reset Register Supported (V2) : 1", "Hardware Reduced (V5) : 0", "Control Method Power Button (V1) : 0", "Control Method Sleep Button (V1) : 1",
			"SCI Interrupt : 0009", "PM Timer Block Address : 00000608", "GPE0 Block Address : 00000620"},
		"APIC": {"Processor Enabled : 1", "Processor x2Apic ID : 0000012B", "Local Apic ID : FE", "Interrupt : 00000002", "Trigger Mode : 3"},
		"MCFG": {"Base Address : 00000000E0000000", "End Bus Number : 00"},
		"XSDT": {"ACPI Table Address   2"},
		"FACS": {"Version : 02"},
	}
	for sig, b := range walk(t, Base, img) {
		name := strings.ToLower(sig)
		if err := os.WriteFile(filepath.Join(dir, name+".aml"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		out := run("-d", name+".aml")
		for line := range strings.Lines(out) {
			if strings.Contains(line, "Warning") || strings.Contains(line, "Error") || strings.Contains(line, "ncorrect checksum") {
				t.Errorf("%s: %s", sig, line)
			}
		}
		dsl, err := os.ReadFile(filepath.Join(dir, name+".dsl"))
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range want[sig] {
			if !strings.Contains(string(dsl), w) {
				t.Errorf("%s: the disassembly lacks %q", sig, w)
			}
		}
	}
	if out := run("-ve", "-p", "again", "dsdt.dsl"); !strings.Contains(out, "0 Errors, 0 Warnings") {
		t.Errorf("compiling the DSDT again: %s", out)
	}
}

func TestEncoding(t *testing.T) {
	for _, c := range []struct{ got, want []byte }{
		{amlInt(0), []byte{0}}, {amlInt(1), []byte{1}}, {amlInt(2), []byte{0x0a, 2}},
		{amlInt(0x100), []byte{0x0b, 0, 1}}, {amlInt(0x10000), []byte{0x0c, 0, 0, 1, 0}},
		{amlInt(1 << 32), []byte{0x0e, 0, 0, 0, 0, 1, 0, 0, 0}},
		{amlEISAID("PNP0A03"), []byte{0x0c, 0x41, 0xd0, 0x0a, 0x03}},
		{amlSized([]byte{1}, make([]byte, 62))[:2], []byte{1, 63}},
		{amlSized([]byte{1}, make([]byte, 63))[:3], []byte{1, 0x41, 4}},
		{amlSized([]byte{1}, make([]byte, 4093))[:3], []byte{1, 0x4f, 0xff}},
		{amlSized([]byte{1}, make([]byte, 4094))[:4], []byte{1, 0x81, 0, 1}},
		{amlSized([]byte{1}, make([]byte, 1<<20))[:5], []byte{1, 0xc4, 0, 0, 1}},
	} {
		if !bytes.Equal(c.got, c.want) {
			t.Errorf("got % x, want % x", c.got, c.want)
		}
	}
}

func ExampleBuild() {
	gsi, _ := platform.MMIOGSI(0)
	img, err := Build(Base, Config{
		CPUs:   2,
		Serial: true,
		MMIO:   []MMIODevice{{Base: platform.MMIOBase, Size: platform.MMIOSize, GSI: gsi}},
	})
	fmt.Printf("%s %v\n", img[:8], err)
	// Output: RSD PTR  <nil>
}
