package rtc

import "time"

// show puts t into the time registers.
func (s *state) show(t moment) {
	u := time.Unix(t.Sec, 0).UTC()
	year := u.Year()
	hour := u.Hour()
	s.CMOS[regSeconds] = s.encode(u.Second())
	s.CMOS[regMinutes] = s.encode(u.Minute())
	if s.CMOS[regB]&b24Hours != 0 {
		s.CMOS[regHours] = s.encode(hour)
	} else {
		h := s.encode((hour+11)%12 + 1)
		if hour >= 12 {
			h |= hourPM
		}
		s.CMOS[regHours] = h
	}
	s.CMOS[regWeekday] = s.encode(int(u.Weekday()) + 1)
	s.CMOS[regDay] = s.encode(u.Day())
	s.CMOS[regMonth] = s.encode(int(u.Month()))
	s.CMOS[regYear] = s.encode(((year % 100) + 100) % 100)
	s.CMOS[regCentury] = s.encode(max(year, 0) / 100 % 100)
}

// decode is the time registers as seconds since 1970. Impossible dates are
// normalized as package time does.
func (s *state) decode() int64 {
	hour, _ := s.hour(s.CMOS[regHours])
	return time.Date(
		100*s.number(s.CMOS[regCentury])+s.number(s.CMOS[regYear]),
		time.Month(s.number(s.CMOS[regMonth])),
		s.number(s.CMOS[regDay]),
		hour,
		s.number(s.CMOS[regMinutes]),
		s.number(s.CMOS[regSeconds]),
		0, time.UTC).Unix()
}

// hourPM marks the afternoon in the 12-hour format.
const hourPM = 1 << 7

// hour decodes an hours register, and says whether it is a possible hour.
func (s *state) hour(v byte) (int, bool) {
	if s.CMOS[regB]&b24Hours != 0 {
		h := s.number(v)
		return h, h < 24
	}
	h := s.number(v &^ hourPM)
	ok := h >= 1 && h <= 12
	h %= 12
	if v&hourPM != 0 {
		h += 12
	}
	return h, ok
}

// encode writes n, 0 to 99, in the format that register B selects.
func (s *state) encode(n int) byte {
	if s.CMOS[regB]&bBinary != 0 {
		return byte(n)
	}
	return byte(n/10<<4 | n%10)
}

// number undoes encode; any byte is some number.
func (s *state) number(v byte) int {
	if s.CMOS[regB]&bBinary != 0 {
		return int(v)
	}
	return int(v>>4)*10 + int(v&0x0f)
}

// dontCare is set in both top bits of an alarm byte that matches anything.
const dontCare = 0xc0

// nextAlarm is the first second, from the given one on, at which the alarm
// goes off.
func (s *state) nextAlarm(from int64) (int64, bool) {
	const day = 24 * 60 * 60
	midnight := from - (from%day+day)%day
	if t, ok := s.alarmInDay(int(from - midnight)); ok {
		return midnight + int64(t), true
	}
	if t, ok := s.alarmInDay(0); ok {
		return midnight + day + int64(t), true
	}
	return 0, false
}

// alarmInDay is the first second of a day, from the given one on, at which
// the alarm goes off.
func (s *state) alarmInDay(from int) (int, bool) {
	hours := span(s.CMOS[regHoursAlarm], 24, func(v byte) (int, bool) { return s.hour(v) })
	sixty := func(v byte) (int, bool) { n := s.number(v); return n, n < 60 }
	minutes := span(s.CMOS[regMinutesAlarm], 60, sixty)
	seconds := span(s.CMOS[regSecondsAlarm], 60, sixty)
	if seconds.first >= seconds.end {
		return 0, false
	}
	for h := max(hours.first, from/3600); h < hours.end; h++ {
		for m := max(minutes.first, (from-h*3600)/60); m < minutes.end; m++ {
			if t := max(h*3600+m*60+seconds.first, from); t < h*3600+m*60+seconds.end {
				return t, true
			}
		}
	}
	return 0, false
}

// field is the values that an alarm byte matches: one, all, or none.
type field struct{ first, end int }

func span(v byte, limit int, decode func(byte) (int, bool)) field {
	if v&dontCare == dontCare {
		return field{0, limit}
	}
	if n, ok := decode(v); ok {
		return field{n, n + 1}
	}
	return field{}
}
