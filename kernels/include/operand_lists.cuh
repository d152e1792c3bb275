// The operands of asm statements with many registers, by how many there are: an asm statement must name each of its
// operands. GL_NAMES_n is "%0, %1, ... %n-1"; GL_REGS_n is GL_2(0), GL_2(2), ... GL_2(n - 2), for a GL_2(i) that the
// includer defines as the operands of registers i and i + 1.
#pragma once

// clang-format off
#define GL_NAMES_2 "%0, %1"
#define GL_NAMES_4 GL_NAMES_2 ", %2, %3"
#define GL_NAMES_6 GL_NAMES_4 ", %4, %5"
#define GL_NAMES_8 GL_NAMES_6 ", %6, %7"
#define GL_NAMES_10 GL_NAMES_8 ", %8, %9"
#define GL_NAMES_12 GL_NAMES_10 ", %10, %11"
#define GL_NAMES_14 GL_NAMES_12 ", %12, %13"
#define GL_NAMES_16 GL_NAMES_14 ", %14, %15"
#define GL_NAMES_18 GL_NAMES_16 ", %16, %17"
#define GL_NAMES_20 GL_NAMES_18 ", %18, %19"
#define GL_NAMES_22 GL_NAMES_20 ", %20, %21"
#define GL_NAMES_24 GL_NAMES_22 ", %22, %23"
#define GL_NAMES_26 GL_NAMES_24 ", %24, %25"
#define GL_NAMES_28 GL_NAMES_26 ", %26, %27"
#define GL_NAMES_30 GL_NAMES_28 ", %28, %29"
#define GL_NAMES_32 GL_NAMES_30 ", %30, %31"
#define GL_NAMES_34 GL_NAMES_32 ", %32, %33"
#define GL_NAMES_36 GL_NAMES_34 ", %34, %35"
#define GL_NAMES_38 GL_NAMES_36 ", %36, %37"
#define GL_NAMES_40 GL_NAMES_38 ", %38, %39"
#define GL_NAMES_42 GL_NAMES_40 ", %40, %41"
#define GL_NAMES_44 GL_NAMES_42 ", %42, %43"
#define GL_NAMES_46 GL_NAMES_44 ", %44, %45"
#define GL_NAMES_48 GL_NAMES_46 ", %46, %47"
#define GL_NAMES_50 GL_NAMES_48 ", %48, %49"
#define GL_NAMES_52 GL_NAMES_50 ", %50, %51"
#define GL_NAMES_54 GL_NAMES_52 ", %52, %53"
#define GL_NAMES_56 GL_NAMES_54 ", %54, %55"
#define GL_NAMES_58 GL_NAMES_56 ", %56, %57"
#define GL_NAMES_60 GL_NAMES_58 ", %58, %59"
#define GL_NAMES_62 GL_NAMES_60 ", %60, %61"
#define GL_NAMES_64 GL_NAMES_62 ", %62, %63"
#define GL_NAMES_66 GL_NAMES_64 ", %64, %65"
#define GL_NAMES_68 GL_NAMES_66 ", %66, %67"
#define GL_NAMES_70 GL_NAMES_68 ", %68, %69"
#define GL_NAMES_72 GL_NAMES_70 ", %70, %71"
#define GL_NAMES_74 GL_NAMES_72 ", %72, %73"
#define GL_NAMES_76 GL_NAMES_74 ", %74, %75"
#define GL_NAMES_78 GL_NAMES_76 ", %76, %77"
#define GL_NAMES_80 GL_NAMES_78 ", %78, %79"
#define GL_NAMES_82 GL_NAMES_80 ", %80, %81"
#define GL_NAMES_84 GL_NAMES_82 ", %82, %83"
#define GL_NAMES_86 GL_NAMES_84 ", %84, %85"
#define GL_NAMES_88 GL_NAMES_86 ", %86, %87"
#define GL_NAMES_90 GL_NAMES_88 ", %88, %89"
#define GL_NAMES_92 GL_NAMES_90 ", %90, %91"
#define GL_NAMES_94 GL_NAMES_92 ", %92, %93"
#define GL_NAMES_96 GL_NAMES_94 ", %94, %95"
#define GL_NAMES_98 GL_NAMES_96 ", %96, %97"
#define GL_NAMES_100 GL_NAMES_98 ", %98, %99"
#define GL_NAMES_102 GL_NAMES_100 ", %100, %101"
#define GL_NAMES_104 GL_NAMES_102 ", %102, %103"
#define GL_NAMES_106 GL_NAMES_104 ", %104, %105"
#define GL_NAMES_108 GL_NAMES_106 ", %106, %107"
#define GL_NAMES_110 GL_NAMES_108 ", %108, %109"
#define GL_NAMES_112 GL_NAMES_110 ", %110, %111"
#define GL_NAMES_114 GL_NAMES_112 ", %112, %113"
#define GL_NAMES_116 GL_NAMES_114 ", %114, %115"
#define GL_NAMES_118 GL_NAMES_116 ", %116, %117"
#define GL_NAMES_120 GL_NAMES_118 ", %118, %119"
#define GL_NAMES_122 GL_NAMES_120 ", %120, %121"
#define GL_NAMES_124 GL_NAMES_122 ", %122, %123"
#define GL_NAMES_126 GL_NAMES_124 ", %124, %125"
#define GL_NAMES_128 GL_NAMES_126 ", %126, %127"

#define GL_REGS_2 GL_2(0)
#define GL_REGS_4 GL_REGS_2, GL_2(2)
#define GL_REGS_6 GL_REGS_4, GL_2(4)
#define GL_REGS_8 GL_REGS_6, GL_2(6)
#define GL_REGS_10 GL_REGS_8, GL_2(8)
#define GL_REGS_12 GL_REGS_10, GL_2(10)
#define GL_REGS_14 GL_REGS_12, GL_2(12)
#define GL_REGS_16 GL_REGS_14, GL_2(14)
#define GL_REGS_18 GL_REGS_16, GL_2(16)
#define GL_REGS_20 GL_REGS_18, GL_2(18)
#define GL_REGS_22 GL_REGS_20, GL_2(20)
#define GL_REGS_24 GL_REGS_22, GL_2(22)
#define GL_REGS_26 GL_REGS_24, GL_2(24)
#define GL_REGS_28 GL_REGS_26, GL_2(26)
#define GL_REGS_30 GL_REGS_28, GL_2(28)
#define GL_REGS_32 GL_REGS_30, GL_2(30)
#define GL_REGS_34 GL_REGS_32, GL_2(32)
#define GL_REGS_36 GL_REGS_34, GL_2(34)
#define GL_REGS_38 GL_REGS_36, GL_2(36)
#define GL_REGS_40 GL_REGS_38, GL_2(38)
#define GL_REGS_42 GL_REGS_40, GL_2(40)
#define GL_REGS_44 GL_REGS_42, GL_2(42)
#define GL_REGS_46 GL_REGS_44, GL_2(44)
#define GL_REGS_48 GL_REGS_46, GL_2(46)
#define GL_REGS_50 GL_REGS_48, GL_2(48)
#define GL_REGS_52 GL_REGS_50, GL_2(50)
#define GL_REGS_54 GL_REGS_52, GL_2(52)
#define GL_REGS_56 GL_REGS_54, GL_2(54)
#define GL_REGS_58 GL_REGS_56, GL_2(56)
#define GL_REGS_60 GL_REGS_58, GL_2(58)
#define GL_REGS_62 GL_REGS_60, GL_2(60)
#define GL_REGS_64 GL_REGS_62, GL_2(62)
#define GL_REGS_66 GL_REGS_64, GL_2(64)
#define GL_REGS_68 GL_REGS_66, GL_2(66)
#define GL_REGS_70 GL_REGS_68, GL_2(68)
#define GL_REGS_72 GL_REGS_70, GL_2(70)
#define GL_REGS_74 GL_REGS_72, GL_2(72)
#define GL_REGS_76 GL_REGS_74, GL_2(74)
#define GL_REGS_78 GL_REGS_76, GL_2(76)
#define GL_REGS_80 GL_REGS_78, GL_2(78)
#define GL_REGS_82 GL_REGS_80, GL_2(80)
#define GL_REGS_84 GL_REGS_82, GL_2(82)
#define GL_REGS_86 GL_REGS_84, GL_2(84)
#define GL_REGS_88 GL_REGS_86, GL_2(86)
#define GL_REGS_90 GL_REGS_88, GL_2(88)
#define GL_REGS_92 GL_REGS_90, GL_2(90)
#define GL_REGS_94 GL_REGS_92, GL_2(92)
#define GL_REGS_96 GL_REGS_94, GL_2(94)
#define GL_REGS_98 GL_REGS_96, GL_2(96)
#define GL_REGS_100 GL_REGS_98, GL_2(98)
#define GL_REGS_102 GL_REGS_100, GL_2(100)
#define GL_REGS_104 GL_REGS_102, GL_2(102)
#define GL_REGS_106 GL_REGS_104, GL_2(104)
#define GL_REGS_108 GL_REGS_106, GL_2(106)
#define GL_REGS_110 GL_REGS_108, GL_2(108)
#define GL_REGS_112 GL_REGS_110, GL_2(110)
#define GL_REGS_114 GL_REGS_112, GL_2(112)
#define GL_REGS_116 GL_REGS_114, GL_2(114)
#define GL_REGS_118 GL_REGS_116, GL_2(116)
#define GL_REGS_120 GL_REGS_118, GL_2(118)
#define GL_REGS_122 GL_REGS_120, GL_2(120)
#define GL_REGS_124 GL_REGS_122, GL_2(122)
#define GL_REGS_126 GL_REGS_124, GL_2(124)
#define GL_REGS_128 GL_REGS_126, GL_2(126)
// clang-format on
