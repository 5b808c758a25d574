package hardware

// The instructions, in hardware_amd64.s.

//go:noescape
func setMXCSR(v uint32)

//go:noescape
func getMXCSR() uint32

//go:noescape
func fadd(s *X87)

//go:noescape
func fmul(s *X87)

//go:noescape
func fcom(s *X87)

//go:noescape
func fsub(s *X87)

//go:noescape
func fsubr(s *X87)

//go:noescape
func fdiv(s *X87)

//go:noescape
func fdivr(s *X87)

//go:noescape
func fucom(s *X87)

//go:noescape
func fcomi(s *X87)

//go:noescape
func fucomi(s *X87)

//go:noescape
func fsqrt(s *X87)

//go:noescape
func fprem(s *X87)

//go:noescape
func fprem1(s *X87)

//go:noescape
func frndint(s *X87)

//go:noescape
func fscale(s *X87)

//go:noescape
func fxtract(s *X87)

//go:noescape
func fxam(s *X87)

//go:noescape
func ftst(s *X87)

//go:noescape
func f2xm1(s *X87)

//go:noescape
func fyl2x(s *X87)

//go:noescape
func fptan(s *X87)

//go:noescape
func fpatan(s *X87)

//go:noescape
func fyl2xp1(s *X87)

//go:noescape
func fsin(s *X87)

//go:noescape
func fcos(s *X87)

//go:noescape
func fsincos(s *X87)

//go:noescape
func fchs(s *X87)

//go:noescape
func fabs(s *X87)

//go:noescape
func fld1(s *X87)

//go:noescape
func fldl2t(s *X87)

//go:noescape
func fldl2e(s *X87)

//go:noescape
func fldpi(s *X87)

//go:noescape
func fldlg2(s *X87)

//go:noescape
func fldln2(s *X87)

//go:noescape
func fldz(s *X87)

//go:noescape
func fld32(s *X87)

//go:noescape
func fld64(s *X87)

//go:noescape
func fld80(s *X87)

//go:noescape
func fild16(s *X87)

//go:noescape
func fild32(s *X87)

//go:noescape
func fild64(s *X87)

//go:noescape
func fstp32(s *X87)

//go:noescape
func fstp64(s *X87)

//go:noescape
func fstp80(s *X87)

//go:noescape
func fistp16(s *X87)

//go:noescape
func fistp32(s *X87)

//go:noescape
func fistp64(s *X87)

//go:noescape
func fisttp16(s *X87)

//go:noescape
func fisttp32(s *X87)

//go:noescape
func fisttp64(s *X87)

//go:noescape
func fbld(s *X87)

//go:noescape
func fbstp(s *X87)

//go:noescape
func fadd32(s *X87)

//go:noescape
func fadd64(s *X87)

//go:noescape
func fmul32(s *X87)

//go:noescape
func fmul64(s *X87)

//go:noescape
func fcom32(s *X87)

//go:noescape
func fcom64(s *X87)

//go:noescape
func fsub32(s *X87)

//go:noescape
func fsub64(s *X87)

//go:noescape
func fsubr32(s *X87)

//go:noescape
func fsubr64(s *X87)

//go:noescape
func fdiv32(s *X87)

//go:noescape
func fdiv64(s *X87)

//go:noescape
func fdivr32(s *X87)

//go:noescape
func fdivr64(s *X87)

//go:noescape
func addss(s *SSE)

//go:noescape
func addsd(s *SSE)

//go:noescape
func addps(s *SSE)

//go:noescape
func addpd(s *SSE)

//go:noescape
func mulss(s *SSE)

//go:noescape
func mulsd(s *SSE)

//go:noescape
func mulps(s *SSE)

//go:noescape
func mulpd(s *SSE)

//go:noescape
func subss(s *SSE)

//go:noescape
func subsd(s *SSE)

//go:noescape
func subps(s *SSE)

//go:noescape
func subpd(s *SSE)

//go:noescape
func minss(s *SSE)

//go:noescape
func minsd(s *SSE)

//go:noescape
func minps(s *SSE)

//go:noescape
func minpd(s *SSE)

//go:noescape
func divss(s *SSE)

//go:noescape
func divsd(s *SSE)

//go:noescape
func divps(s *SSE)

//go:noescape
func divpd(s *SSE)

//go:noescape
func maxss(s *SSE)

//go:noescape
func maxsd(s *SSE)

//go:noescape
func maxps(s *SSE)

//go:noescape
func maxpd(s *SSE)

//go:noescape
func sqrtss(s *SSE)

//go:noescape
func sqrtsd(s *SSE)

//go:noescape
func sqrtps(s *SSE)

//go:noescape
func sqrtpd(s *SSE)

//go:noescape
func cmpeqss(s *SSE)

//go:noescape
func cmpeqsd(s *SSE)

//go:noescape
func cmpltss(s *SSE)

//go:noescape
func cmpltsd(s *SSE)

//go:noescape
func cmpless(s *SSE)

//go:noescape
func cmplesd(s *SSE)

//go:noescape
func cmpunordss(s *SSE)

//go:noescape
func cmpunordsd(s *SSE)

//go:noescape
func cmpneqss(s *SSE)

//go:noescape
func cmpneqsd(s *SSE)

//go:noescape
func cmpnltss(s *SSE)

//go:noescape
func cmpnltsd(s *SSE)

//go:noescape
func cmpnless(s *SSE)

//go:noescape
func cmpnlesd(s *SSE)

//go:noescape
func cmpordss(s *SSE)

//go:noescape
func cmpordsd(s *SSE)

//go:noescape
func comiss(s *SSE)

//go:noescape
func comisd(s *SSE)

//go:noescape
func ucomiss(s *SSE)

//go:noescape
func ucomisd(s *SSE)

//go:noescape
func cvtsi2ss32(s *SSE)

//go:noescape
func cvtsi2ss64(s *SSE)

//go:noescape
func cvtsi2sd32(s *SSE)

//go:noescape
func cvtsi2sd64(s *SSE)

//go:noescape
func cvtss2si32(s *SSE)

//go:noescape
func cvtss2si64(s *SSE)

//go:noescape
func cvtsd2si32(s *SSE)

//go:noescape
func cvtsd2si64(s *SSE)

//go:noescape
func cvttss2si32(s *SSE)

//go:noescape
func cvttss2si64(s *SSE)

//go:noescape
func cvttsd2si32(s *SSE)

//go:noescape
func cvttsd2si64(s *SSE)

//go:noescape
func cvtss2sd(s *SSE)

//go:noescape
func cvtsd2ss(s *SSE)

//go:noescape
func cvtdq2ps(s *SSE)

//go:noescape
func cvtps2dq(s *SSE)

//go:noescape
func cvttps2dq(s *SSE)

//go:noescape
func cvtdq2pd(s *SSE)

//go:noescape
func cvtpd2dq(s *SSE)

//go:noescape
func cvttpd2dq(s *SSE)

//go:noescape
func rcpss(s *SSE)

//go:noescape
func rsqrtss(s *SSE)

//go:noescape
func roundss0(s *SSE)

//go:noescape
func roundsd0(s *SSE)

//go:noescape
func roundss1(s *SSE)

//go:noescape
func roundsd1(s *SSE)

//go:noescape
func roundss2(s *SSE)

//go:noescape
func roundsd2(s *SSE)

//go:noescape
func roundss3(s *SSE)

//go:noescape
func roundsd3(s *SSE)

//go:noescape
func roundss4(s *SSE)

//go:noescape
func roundsd4(s *SSE)

//go:noescape
func roundss5(s *SSE)

//go:noescape
func roundsd5(s *SSE)

//go:noescape
func roundss6(s *SSE)

//go:noescape
func roundsd6(s *SSE)

//go:noescape
func roundss7(s *SSE)

//go:noescape
func roundsd7(s *SSE)

//go:noescape
func roundss8(s *SSE)

//go:noescape
func roundsd8(s *SSE)

//go:noescape
func roundss9(s *SSE)

//go:noescape
func roundsd9(s *SSE)

//go:noescape
func roundss10(s *SSE)

//go:noescape
func roundsd10(s *SSE)

//go:noescape
func roundss11(s *SSE)

//go:noescape
func roundsd11(s *SSE)

//go:noescape
func roundss12(s *SSE)

//go:noescape
func roundsd12(s *SSE)

//go:noescape
func roundss13(s *SSE)

//go:noescape
func roundsd13(s *SSE)

//go:noescape
func roundss14(s *SSE)

//go:noescape
func roundsd14(s *SSE)

//go:noescape
func roundss15(s *SSE)

//go:noescape
func roundsd15(s *SSE)

//go:noescape
func dpps255(s *SSE)

//go:noescape
func dpps113(s *SSE)

//go:noescape
func dpps178(s *SSE)

//go:noescape
func dppd51(s *SSE)

//go:noescape
func dppd17(s *SSE)

var x87 = map[string]func(*X87){
	"FADD":     fadd,
	"FMUL":     fmul,
	"FCOM":     fcom,
	"FSUB":     fsub,
	"FSUBR":    fsubr,
	"FDIV":     fdiv,
	"FDIVR":    fdivr,
	"FUCOM":    fucom,
	"FCOMI":    fcomi,
	"FUCOMI":   fucomi,
	"FSQRT":    fsqrt,
	"FPREM":    fprem,
	"FPREM1":   fprem1,
	"FRNDINT":  frndint,
	"FSCALE":   fscale,
	"FXTRACT":  fxtract,
	"FXAM":     fxam,
	"FTST":     ftst,
	"F2XM1":    f2xm1,
	"FYL2X":    fyl2x,
	"FPTAN":    fptan,
	"FPATAN":   fpatan,
	"FYL2XP1":  fyl2xp1,
	"FSIN":     fsin,
	"FCOS":     fcos,
	"FSINCOS":  fsincos,
	"FCHS":     fchs,
	"FABS":     fabs,
	"FLD1":     fld1,
	"FLDL2T":   fldl2t,
	"FLDL2E":   fldl2e,
	"FLDPI":    fldpi,
	"FLDLG2":   fldlg2,
	"FLDLN2":   fldln2,
	"FLDZ":     fldz,
	"FLD32":    fld32,
	"FLD64":    fld64,
	"FLD80":    fld80,
	"FILD16":   fild16,
	"FILD32":   fild32,
	"FILD64":   fild64,
	"FSTP32":   fstp32,
	"FSTP64":   fstp64,
	"FSTP80":   fstp80,
	"FISTP16":  fistp16,
	"FISTP32":  fistp32,
	"FISTP64":  fistp64,
	"FISTTP16": fisttp16,
	"FISTTP32": fisttp32,
	"FISTTP64": fisttp64,
	"FBLD":     fbld,
	"FBSTP":    fbstp,
	"FADD32":   fadd32,
	"FADD64":   fadd64,
	"FMUL32":   fmul32,
	"FMUL64":   fmul64,
	"FCOM32":   fcom32,
	"FCOM64":   fcom64,
	"FSUB32":   fsub32,
	"FSUB64":   fsub64,
	"FSUBR32":  fsubr32,
	"FSUBR64":  fsubr64,
	"FDIV32":   fdiv32,
	"FDIV64":   fdiv64,
	"FDIVR32":  fdivr32,
	"FDIVR64":  fdivr64,
}

var sse = map[string]func(*SSE){
	"ADDSS":       addss,
	"ADDSD":       addsd,
	"ADDPS":       addps,
	"ADDPD":       addpd,
	"MULSS":       mulss,
	"MULSD":       mulsd,
	"MULPS":       mulps,
	"MULPD":       mulpd,
	"SUBSS":       subss,
	"SUBSD":       subsd,
	"SUBPS":       subps,
	"SUBPD":       subpd,
	"MINSS":       minss,
	"MINSD":       minsd,
	"MINPS":       minps,
	"MINPD":       minpd,
	"DIVSS":       divss,
	"DIVSD":       divsd,
	"DIVPS":       divps,
	"DIVPD":       divpd,
	"MAXSS":       maxss,
	"MAXSD":       maxsd,
	"MAXPS":       maxps,
	"MAXPD":       maxpd,
	"SQRTSS":      sqrtss,
	"SQRTSD":      sqrtsd,
	"SQRTPS":      sqrtps,
	"SQRTPD":      sqrtpd,
	"CMPEQSS":     cmpeqss,
	"CMPEQSD":     cmpeqsd,
	"CMPLTSS":     cmpltss,
	"CMPLTSD":     cmpltsd,
	"CMPLESS":     cmpless,
	"CMPLESD":     cmplesd,
	"CMPUNORDSS":  cmpunordss,
	"CMPUNORDSD":  cmpunordsd,
	"CMPNEQSS":    cmpneqss,
	"CMPNEQSD":    cmpneqsd,
	"CMPNLTSS":    cmpnltss,
	"CMPNLTSD":    cmpnltsd,
	"CMPNLESS":    cmpnless,
	"CMPNLESD":    cmpnlesd,
	"CMPORDSS":    cmpordss,
	"CMPORDSD":    cmpordsd,
	"COMISS":      comiss,
	"COMISD":      comisd,
	"UCOMISS":     ucomiss,
	"UCOMISD":     ucomisd,
	"CVTSI2SS32":  cvtsi2ss32,
	"CVTSI2SS64":  cvtsi2ss64,
	"CVTSI2SD32":  cvtsi2sd32,
	"CVTSI2SD64":  cvtsi2sd64,
	"CVTSS2SI32":  cvtss2si32,
	"CVTSS2SI64":  cvtss2si64,
	"CVTSD2SI32":  cvtsd2si32,
	"CVTSD2SI64":  cvtsd2si64,
	"CVTTSS2SI32": cvttss2si32,
	"CVTTSS2SI64": cvttss2si64,
	"CVTTSD2SI32": cvttsd2si32,
	"CVTTSD2SI64": cvttsd2si64,
	"CVTSS2SD":    cvtss2sd,
	"CVTSD2SS":    cvtsd2ss,
	"CVTDQ2PS":    cvtdq2ps,
	"CVTPS2DQ":    cvtps2dq,
	"CVTTPS2DQ":   cvttps2dq,
	"CVTDQ2PD":    cvtdq2pd,
	"CVTPD2DQ":    cvtpd2dq,
	"CVTTPD2DQ":   cvttpd2dq,
	"RCPSS":       rcpss,
	"RSQRTSS":     rsqrtss,
	"ROUNDSS0":    roundss0,
	"ROUNDSD0":    roundsd0,
	"ROUNDSS1":    roundss1,
	"ROUNDSD1":    roundsd1,
	"ROUNDSS2":    roundss2,
	"ROUNDSD2":    roundsd2,
	"ROUNDSS3":    roundss3,
	"ROUNDSD3":    roundsd3,
	"ROUNDSS4":    roundss4,
	"ROUNDSD4":    roundsd4,
	"ROUNDSS5":    roundss5,
	"ROUNDSD5":    roundsd5,
	"ROUNDSS6":    roundss6,
	"ROUNDSD6":    roundsd6,
	"ROUNDSS7":    roundss7,
	"ROUNDSD7":    roundsd7,
	"ROUNDSS8":    roundss8,
	"ROUNDSD8":    roundsd8,
	"ROUNDSS9":    roundss9,
	"ROUNDSD9":    roundsd9,
	"ROUNDSS10":   roundss10,
	"ROUNDSD10":   roundsd10,
	"ROUNDSS11":   roundss11,
	"ROUNDSD11":   roundsd11,
	"ROUNDSS12":   roundss12,
	"ROUNDSD12":   roundsd12,
	"ROUNDSS13":   roundss13,
	"ROUNDSD13":   roundsd13,
	"ROUNDSS14":   roundss14,
	"ROUNDSD14":   roundsd14,
	"ROUNDSS15":   roundss15,
	"ROUNDSD15":   roundsd15,
	"DPPS255":     dpps255,
	"DPPS113":     dpps113,
	"DPPS178":     dpps178,
	"DPPD51":      dppd51,
	"DPPD17":      dppd17,
}
