package rtc

import (
	"fmt"
	"time"
)

// Registers, by index. What follows regD is plain memory, but for the century.
const (
	regSeconds      = 0x00
	regSecondsAlarm = 0x01
	regMinutes      = 0x02
	regMinutesAlarm = 0x03
	regHours        = 0x04
	regHoursAlarm   = 0x05
	regWeekday      = 0x06 // 1 is Sunday
	regDay          = 0x07
	regMonth        = 0x08
	regYear         = 0x09
	regA            = 0x0a
	regB            = 0x0b
	regC            = 0x0c
	regD            = 0x0d
	firstPlain      = 0x0e
	regCentury      = 0x32
)

// Register A: update in progress, divider, rate.
const (
	aUpdating     = 1 << 7
	aDividerReset = 0x60 // both set: the divider is held in reset
	aRate         = 0x0f
	aInit         = 0x26 // 32768 Hz crystal, 1024 Hz periodic rate
)

// Register B.
const (
	bSet      = 1 << 7 // no updates: the guest sets the time
	bPeriodic = 1 << 6
	bAlarm    = 1 << 5
	bUpdate   = 1 << 4
	bBinary   = 1 << 2
	b24Hours  = 1 << 1
)

// Register C: flags, at the places of their enable bits in B.
const (
	cRequest = 1 << 7
	cFlags   = bPeriodic | bAlarm | bUpdate
)

// Register D.
const dValid = 1 << 7

const (
	second = int64(time.Second)
	// updateWarning is how long before an update UIP is set.
	updateWarning = 244 * int64(time.Microsecond)
	crystal       = 32768 // Hz
)

// moment is a time as seconds and nanoseconds since 1970. It spans any date
// that the registers can hold, which one number of nanoseconds would not.
type moment struct {
	Sec  int64 `json:"sec"`
	Nsec int64 `json:"nsec"` // 0 to 999999999
}

func fromUnixNano(n int64) moment {
	m := moment{n / second, n % second}
	if m.Nsec < 0 {
		m.Sec, m.Nsec = m.Sec-1, m.Nsec+second
	}
	return m
}

func (m moment) add(o moment) moment {
	m.Sec, m.Nsec = m.Sec+o.Sec, m.Nsec+o.Nsec
	if m.Nsec >= second {
		m.Sec, m.Nsec = m.Sec+1, m.Nsec-second
	}
	return m
}

func (m moment) sub(o moment) moment {
	m.Sec, m.Nsec = m.Sec-o.Sec, m.Nsec-o.Nsec
	if m.Nsec < 0 {
		m.Sec, m.Nsec = m.Sec-1, m.Nsec+second
	}
	return m
}

func (m moment) before(o moment) bool {
	return m.Sec < o.Sec || m.Sec == o.Sec && m.Nsec < o.Nsec
}

// state is the chip's registers, and what is saved.
type state struct {
	Index byte `json:"index"`
	// CMOS is the bytes by index. Those of the time are valid only while it
	// stands still, C and D not at all.
	CMOS cmos `json:"cmos"`
	// Flags is register C without its request bit.
	Flags byte `json:"flags"`
	// Offset is the guest's time less the host's.
	Offset moment `json:"offset"`
	// Seen is the guest's time up to which Flags has every event.
	Seen moment `json:"seen"`
}

// cmos is the chip's bytes, in JSON a string of hexadecimal digits.
type cmos [128]byte

func (s *state) reset(host moment) {
	*s = state{Seen: host}
	s.CMOS[regA] = aInit
	s.CMOS[regB] = b24Hours
}

// check validates a loaded state.
func (s *state) check() error {
	const far = 1 << 42 // seconds: beyond the last year that fits the registers
	for _, m := range []moment{s.Offset, s.Seen} {
		if m.Nsec < 0 || m.Nsec >= second || m.Sec < -far || m.Sec > far {
			return fmt.Errorf("saved time of %d s %d ns is impossible", m.Sec, m.Nsec)
		}
	}
	if s.Index > 0x7f || s.Flags&^cFlags != 0 || s.CMOS[regA]&aUpdating != 0 {
		return fmt.Errorf("saved index %#x, flags %#x or register A %#x is impossible", s.Index, s.Flags, s.CMOS[regA])
	}
	return nil
}

// stopped reports whether the time stands still.
func (s *state) stopped() bool {
	return s.CMOS[regB]&bSet != 0 || s.dividerReset()
}

func (s *state) dividerReset() bool { return s.CMOS[regA]&aDividerReset == aDividerReset }

// pending reports whether the chip requests an interrupt.
func (s *state) pending() bool { return s.Flags&s.CMOS[regB]&cFlags != 0 }

// read reads the selected register; s is caught up.
func (s *state) read(host moment) byte {
	switch i := s.Index; i {
	case regSeconds, regMinutes, regHours, regWeekday, regDay, regMonth, regYear, regCentury:
		if !s.stopped() {
			s.show(host.add(s.Offset))
		}
		return s.CMOS[i]
	case regA:
		v := s.CMOS[regA]
		if !s.stopped() && host.add(s.Offset).Nsec >= second-updateWarning {
			v |= aUpdating
		}
		return v
	case regC:
		v := s.Flags
		if s.pending() {
			v |= cRequest
		}
		s.Flags = 0
		return v
	case regD:
		return dValid
	default:
		return s.CMOS[i]
	}
}

// write writes the selected register; s is caught up.
func (s *state) write(host moment, v byte) {
	switch i := s.Index; i {
	case regSeconds, regMinutes, regHours, regWeekday, regDay, regMonth, regYear, regCentury:
		if s.stopped() {
			s.CMOS[i] = v
			return
		}
		s.show(host.add(s.Offset))
		s.CMOS[i] = v
		s.adopt(host, host.add(s.Offset).Nsec)
	case regA, regB:
		wasStopped, wasReset := s.stopped(), s.dividerReset()
		if !wasStopped {
			// Should the time stop now, or its format change, it is this.
			s.show(host.add(s.Offset))
		}
		if i == regA {
			s.CMOS[regA] = v &^ aUpdating
		} else {
			if v&bSet != 0 {
				v &^= bUpdate // data sheet: setting SET clears UIE
			}
			s.CMOS[regB] = v
		}
		switch {
		case s.stopped():
		case wasReset:
			// The first update comes half a second after the reset ends.
			s.adopt(host, second/2)
		case wasStopped:
			s.adopt(host, host.add(s.Offset).Nsec)
		}
	case regC, regD:
		// Read-only.
	default:
		s.CMOS[i] = v
	}
}

// adopt makes the guest's time what the registers say, nsec into the second.
func (s *state) adopt(host moment, nsec int64) {
	t := moment{s.decode(), nsec}
	s.Offset = t.sub(host)
	s.Seen = t
}

// catchUp sets the flags of what happened since the last look.
func (s *state) catchUp(host moment) {
	now := host.add(s.Offset)
	if s.stopped() {
		s.Seen = now
		return
	}
	if now.before(s.Seen) {
		s.Seen = now // the host's clock was set back
		return
	}
	if s.period() > 0 && s.periods(now) != s.periods(s.Seen) {
		s.Flags |= bPeriodic
	}
	if now.Sec != s.Seen.Sec {
		s.Flags |= bUpdate
		if at, ok := s.nextAlarm(s.Seen.Sec + 1); ok && at <= now.Sec {
			s.Flags |= bAlarm
		}
	}
	s.Seen = now
}

// next is how long it takes to the next event with an interrupt that is
// enabled and whose flag is clear. It is at most a minute, so that steps of
// the host's clock are noticed.
func (s *state) next(host moment) (time.Duration, bool) {
	want := s.CMOS[regB] & cFlags &^ s.Flags
	if want == 0 || s.stopped() {
		return 0, false
	}
	now := host.add(s.Offset)
	best := time.Minute
	if p := s.period(); want&bPeriodic != 0 && p > 0 {
		// Periods divide a second, so counting within one is enough.
		due := (now.Nsec*crystal/second/p + 1) * p
		best = min(best, time.Duration((due*second+crystal-1)/crystal-now.Nsec))
	}
	if want&bUpdate != 0 {
		best = min(best, time.Duration(second-now.Nsec))
	}
	if want&bAlarm != 0 {
		if at, ok := s.nextAlarm(now.Sec + 1); ok && at-now.Sec <= 60 {
			best = min(best, time.Duration((at-now.Sec)*second-now.Nsec))
		}
	}
	return best, true
}

// period is the periodic interrupt's in ticks of the crystal, 0 for none.
func (s *state) period() int64 {
	rate := s.CMOS[regA] & aRate
	switch rate {
	case 0:
		return 0
	case 1, 2:
		rate += 7
	}
	return 1 << (rate - 1)
}

// periods is the count of whole periods up to t, for a period that is not 0.
func (s *state) periods(t moment) int64 {
	return t.Sec*(crystal/s.period()) + t.Nsec*crystal/second/s.period()
}
